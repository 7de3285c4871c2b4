"""Builds what a pool is made of in Kubernetes. Pure: an ActorPool and settings in, documents out.

merge   lays a user's pod template over ours
pool    Deployment, PodDisruptionBudget, ServiceAccount, RoleBinding
"""
