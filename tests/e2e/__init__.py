"""Tests on a real Kubernetes: kind, helm, kubectl, and a client outside the cluster's pods."""
