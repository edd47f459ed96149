{{/*
The container: the same for the Deployment, for the sidecar's manifest and for a parent chart
that includes it as {{ include "relay.container" .Subcharts.relay }}.
*/}}
{{- define "relay.container" -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
name: relay
image: {{ include "relay.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if and $sidecar .Values.sidecar.native }}
restartPolicy: Always
{{- end }}
args: [run, --config, /etc/relay/relay.toml]
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: relay
    containerPort: {{ include "relay.clientPort" . }}
    protocol: TCP
  - name: relay-admin
    containerPort: {{ include "relay.adminPort" . }}
    protocol: TCP
startupProbe:
  httpGet:
    path: /livez
    port: relay-admin
  {{- toYaml .Values.probes.startup | nindent 2 }}
readinessProbe:
  httpGet:
    path: {{ ternary "/readyz?scope=self" "/readyz" $sidecar }}
    port: relay-admin
  {{- toYaml .Values.probes.readiness | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: relay-admin
  {{- toYaml .Values.probes.liveness | nindent 2 }}
lifecycle:
  # Not at the signal: a sidecar gets that last, when the API is gone.
  preStop:
    exec:
      command: [/usr/local/bin/relay, drain, --wait, --admin, "127.0.0.1:{{ include "relay.adminPort" . }}"]
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  - name: relay-config
    mountPath: /etc/relay
    readOnly: true
  {{- range (include "relay.secrets" . | fromYamlArray) }}
  - name: relay-secret-{{ .name }}
    mountPath: /run/secrets/relay/{{ .name }}
    readOnly: true
  {{- end }}
{{- end -}}

{{/* What the container mounts. Files are for everybody in the pod's own file system: the user has no group there. */}}
{{- define "relay.volumes" -}}
- name: relay-config
  configMap:
    name: {{ include "relay.fullname" . }}
    defaultMode: 0444
{{- range (include "relay.secrets" . | fromYamlArray) }}
- name: relay-secret-{{ .name }}
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0444
    {{- with .key }}
    items:
      - key: {{ . }}
        path: {{ . }}
    {{- end }}
{{- end }}
{{- end -}}

{{/* Secrets that are mounted: name and existingSecret of each, and the one key if no more is needed. */}}
{{- define "relay.secrets" -}}
{{- $secrets := list -}}
{{- with .Values.jwt.existingSecret }}{{ $secrets = append $secrets (dict "name" "jwt" "existingSecret" . "key" $.Values.jwt.key) }}{{ end -}}
{{- with .Values.redis.existingSecret }}{{ $secrets = append $secrets (dict "name" "redis" "existingSecret" . "key" $.Values.redis.passwordKey) }}{{ end -}}
{{- toYaml (concat $secrets .Values.secretMounts) -}}
{{- end -}}

{{/* A pod with this annotation is replaced when relay.toml changes. */}}
{{- define "relay.podAnnotations" -}}
checksum/relay-config: {{ include "relay.config" . | sha256sum }}
{{- end -}}
