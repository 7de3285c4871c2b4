{{/* Names */}}

{{- define "aether.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters, so that every name made from it (the longest adds 19, a StatefulSet's pods 2) is a DNS label. */}}
{{- define "aether.fullname" -}}
{{- $name := include "aether.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "aether.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-operator" (include "aether.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Labels. Takes (list $ "component"); the selector's never change, since selectors cannot. */}}

{{- define "aether.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aether.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* No version here: a new chart must not restart pods by itself. */}}
{{- define "aether.podLabels" -}}
{{- with (index . 0).Values.commonLabels }}
{{- toYaml . }}
{{ end -}}
{{ include "aether.selectorLabels" . }}
app.kubernetes.io/part-of: aether
{{- end -}}

{{- define "aether.labels" -}}
{{- $root := index . 0 -}}
{{ include "aether.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Images */}}

{{- define "aether.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "aether.imagePullSecrets" -}}
imagePullSecrets:
{{- range .Values.imagePullSecrets }}
- name: {{ . }}
{{- end }}
{{- end -}}

{{/* What Pod Security's "restricted" asks of a pod and of a container. */}}

{{- define "aether.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "aether.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* NATS */}}

{{- define "aether.nats.name" -}}
{{ include "aether.fullname" . }}-nats
{{- end -}}

{{/* With the namespace, since pools of other namespaces use it too. */}}
{{- define "aether.nats.url" -}}
{{- default (printf "nats://%s.%s.svc:4222" (include "aether.nats.name" .) .Release.Namespace) .Values.nats.url -}}
{{- end -}}

{{/* Nine tenths of a quantity in Mi, Gi or Ti, in bytes, or nothing: the file system and the Go runtime need the rest. */}}
{{- define "aether.mostOf" -}}
{{- if regexMatch "^[0-9]+(Mi|Gi|Ti)$" . -}}
{{- $factor := get (dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Z]i$" .) -}}
{{- div (mul (regexFind "^[0-9]+" . | int64) $factor 9) 10 -}}
{{- end -}}
{{- end -}}

{{- define "aether.events.replicas" -}}
{{- if .Values.events.replicas -}}
{{ .Values.events.replicas }}
{{- else -}}
{{ .Values.nats.url | empty | ternary .Values.nats.replicas 1 }}
{{- end -}}
{{- end -}}

{{/* The namespaces that get a pool, comma separated. */}}
{{- define "aether.poolNamespaces" -}}
{{- default (list .Release.Namespace) .Values.pool.namespaces | join "," -}}
{{- end -}}

{{/* Whether NATS tells users apart: its own here, or by credentials that somebody made. */}}
{{- define "aether.nats.hasUsers" -}}
{{- and .Values.nats.users.enabled (not .Values.nats.url) | ternary "true" "" -}}
{{- end -}}

{{/* The Secrets with the credentials of operator and pools; empty for none. */}}
{{- define "aether.nats.operatorSecret" -}}
{{- if include "aether.nats.hasUsers" . -}}
{{- default (printf "%s-operator" (include "aether.nats.name" .)) .Values.nats.users.operatorSecret -}}
{{- else -}}
{{ .Values.nats.credentialsSecret }}
{{- end -}}
{{- end -}}

{{- define "aether.nats.runtimeSecret" -}}
{{- if include "aether.nats.hasUsers" . -}}
{{- default (printf "%s-runtime" (include "aether.nats.name" .)) .Values.nats.users.runtimeSecret -}}
{{- else -}}
{{ .Values.nats.credentialsSecret }}
{{- end -}}
{{- end -}}

{{/* A password that is there, else a new one: an upgrade keeps it. Takes (list $ "secret"). Begins with a letter, since NATS reads it as a value. */}}
{{- define "aether.nats.password" -}}
{{- $found := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) -}}
{{- if $found -}}
{{ index $found.data "password" | b64dec }}
{{- else -}}
p{{ randAlphaNum 40 }}
{{- end -}}
{{- end -}}
