{{- define "relay.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* 50 characters, so that what is appended fits in the 63 that a name may have. */}}
{{- define "relay.fullname" -}}
{{- $name := include "relay.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* A Deployment's selector can't be changed: nothing in here may follow a version. */}}
{{- define "relay.selectorLabels" -}}
app.kubernetes.io/name: {{ include "relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "relay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "relay.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Which pods the Services and monitors are for. */}}
{{- define "relay.podSelector" -}}
{{- if eq .Values.mode "sidecar" -}}
{{- toYaml .Values.sidecar.podLabels -}}
{{- else -}}
{{- include "relay.selectorLabels" . -}}
{{- end -}}
{{- end -}}

{{- define "relay.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The ports are those of the config, so that they are written once. */}}
{{- define "relay.clientPort" -}}
{{- regexFind "[0-9]+$" .Values.config.server.listen -}}
{{- end -}}
{{- define "relay.adminPort" -}}
{{- regexFind "[0-9]+$" .Values.config.server.admin_listen -}}
{{- end -}}

{{- define "relay.appProtocol" -}}
{{- if ne .Values.service.appProtocol "auto" -}}{{ .Values.service.appProtocol }}
{{- else if dig "server" "tls" "cert" "" .Values.config -}}kubernetes.io/wss
{{- else -}}kubernetes.io/ws
{{- end -}}
{{- end -}}

{{- define "relay.serviceAccountName" -}}
{{- if .Values.deployment.serviceAccount.create -}}
{{- .Values.deployment.serviceAccount.name | default (include "relay.fullname" .) -}}
{{- else -}}
{{- .Values.deployment.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Matchers of this relay's series: the operator names jobs after its monitors. */}}
{{- define "relay.seriesSelector" -}}
{{- if .Values.metrics.rules.selector -}}
{{- .Values.metrics.rules.selector -}}
{{- else if .Values.metrics.podMonitor.enabled -}}
{{- printf "job=\"%s/%s\"" .Release.Namespace (include "relay.fullname" .) -}}
{{- else -}}
{{- printf "namespace=\"%s\",job=\"%s-metrics\"" .Release.Namespace (include "relay.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* "1h", "2m", "250ms" as seconds, rounded up. */}}
{{- define "relay.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}{{ div (add $number 999) 1000 }}
{{- else if eq $unit "m" -}}{{ mul $number 60 }}
{{- else if eq $unit "h" -}}{{ mul $number 3600 }}
{{- else -}}{{ $number }}
{{- end -}}
{{- end -}}

{{/* From the start of a drain to the cut. */}}
{{- define "relay.drainSeconds" -}}
{{- $drain := .Values.config.drain | default dict -}}
{{- $delay := include "relay.seconds" ($drain.delay | default "3s" | toString) -}}
{{- $window := include "relay.seconds" ($drain.window | default "12s" | toString) -}}
{{- $grace := include "relay.seconds" ($drain.grace | default "5s" | toString) -}}
{{- add (int64 $delay) (int64 $window) (int64 $grace) -}}
{{- end -}}
