{{/*
relay.toml from values. Helm's own toToml writes integers as 8080.0, which is another type.
A key's value is a scalar, a list or an inline table; tables that stand on their own follow
the keys, because in TOML every key after a header belongs to it.
*/}}
{{- define "relay.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $redis := $config.redis | default dict -}}
{{- with .Values.redis.url }}{{ $_ := set $redis "url" (tpl . $) }}{{ end -}}
{{- with .Values.redis.username }}{{ $_ := set $redis "username" . }}{{ end -}}
{{- if .Values.redis.existingSecret }}{{ $_ := set $redis "password" (printf "${file:/run/secrets/relay/redis/%s}" .Values.redis.passwordKey) }}{{ end -}}
{{- $_ := set $config "redis" $redis -}}
{{- if .Values.jwt.existingSecret -}}
{{- $auth := $config.auth | default dict -}}
{{- $file := printf "${file:/run/secrets/relay/jwt/%s}" .Values.jwt.key -}}
{{- $kind := ternary "secret" "public_key" (hasPrefix "HS" (first .Values.jwt.algorithms)) -}}
{{- $key := dict "algorithms" .Values.jwt.algorithms $kind $file -}}
{{- $_ := set $auth "key" (prepend ($auth.key | default list) $key) -}}
{{- $_ := set $config "auth" $auth -}}
{{- end -}}
# Rendered by Helm from `config`: change it there.
{{ include "relay.toml.table" (dict "path" "" "table" $config) | trim }}
{{ end -}}

{{- define "relay.toml.table" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if and (not (kindIs "invalid" $value)) (not (include "relay.toml.standsAlone" $value)) }}
{{ include "relay.toml.key" $key }} = {{ include "relay.toml.value" $value }}
{{- end -}}
{{- end }}
{{- range $key, $value := .table -}}
{{- if include "relay.toml.standsAlone" $value -}}
{{- $name := include "relay.toml.key" $key -}}
{{- if $path }}{{ $name = printf "%s.%s" $path $name }}{{ end -}}
{{- if kindIs "map" $value }}

[{{ $name }}]
{{- include "relay.toml.table" (dict "path" $name "table" $value) -}}
{{- else -}}
{{- range $value }}

[[{{ $name }}]]
{{- include "relay.toml.table" (dict "path" $name "table" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Says "yes" for a table and for a list of tables. */}}
{{- define "relay.toml.standsAlone" -}}
{{- if kindIs "map" . -}}yes
{{- else if kindIs "slice" . -}}
{{- if . -}}{{- if kindIs "map" (first .) -}}yes{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "relay.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end -}}
{{- end -}}

{{- define "relay.toml.value" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . }}{{ $items = append $items (include "relay.toml.value" .) }}{{ end -}}
[{{ join ", " $items }}]
{{- else if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s = %s" (include "relay.toml.key" $key) (include "relay.toml.value" $value)) }}{{ end -}}
{ {{- join ", " $pairs -}} }
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}
