{{/*
What a schema can't say. Each sentence has the fix in it, and a test of its own.
*/}}
{{- define "relay.validate" -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
{{- $config := .Values.config -}}
{{- if not .Values.image.repository -}}
{{- fail "image.repository is empty: build the image with `make image`, push it to your registry, and set image.repository to it" -}}
{{- end -}}
{{- if and $sidecar (not .Values.sidecar.podLabels) -}}
{{- fail "mode is sidecar, but which pods get it is not known: set sidecar.podLabels to the labels that your API's Service selects, or set mode to deployment" -}}
{{- end -}}
{{- if and $sidecar .Values.sidecar.native (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "Kubernetes %s has no native sidecars: set sidecar.native to false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $url := .Values.redis.url | default (dig "redis" "url" "" $config) -}}
{{- if not $url -}}
{{- fail "no Redis: set redis.url, for example to redis://redis:6379/0" -}}
{{- end -}}
{{- if regexMatch "^[a-z]+://[^/@$]*:[^/@$]+@" $url -}}
{{- fail "redis.url has a password in it, and values are no place for one: put it into a Secret, and set redis.existingSecret and redis.passwordKey" -}}
{{- end -}}
{{- with dig "redis" "password" "" $config -}}
{{- if not (hasPrefix "${" .) -}}
{{- fail "config.redis.password is written out, and values are no place for it: put it into a Secret, and set redis.existingSecret and redis.passwordKey" -}}
{{- end -}}
{{- end -}}
{{- range $key := dig "auth" "key" list $config -}}
{{- with $key.secret -}}
{{- if not (hasPrefix "${" .) -}}
{{- fail "config.auth.key has a secret written out, and values are no place for it: put it into a Secret, and set jwt.existingSecret and jwt.key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (ne (dig "auth" "mode" "jwt" $config) "none") (not .Values.jwt.existingSecret) (not (dig "auth" "key" list $config)) -}}
{{- fail "no key to verify tokens with: set jwt.existingSecret to a Secret that has one under jwt.key, or set config.auth.key; if every route is public, set config.auth.mode to none" -}}
{{- end -}}
{{- if not $config.route -}}
{{- fail "no route: set config.route to a list with at least one, as [[route]] in relay.toml" -}}
{{- end -}}
{{- $drain := include "relay.drainSeconds" . | int -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (add $drain 5 | int) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but the drain takes up to %d s: set it to at least %d, or shorten config.drain" (int .Values.terminationGracePeriodSeconds) $drain (add $drain 5)) -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled -}}
{{- fail "both monitors would scrape each pod twice: set metrics.podMonitor.enabled or metrics.serviceMonitor.enabled to false" -}}
{{- end -}}
{{- if and .Values.metrics.rules.enabled (not .Values.metrics.rules.selector) (not .Values.metrics.podMonitor.enabled) (not .Values.metrics.serviceMonitor.enabled) -}}
{{- fail "the alerts don't know their series: enable metrics.podMonitor or metrics.serviceMonitor, or set metrics.rules.selector to matchers such as job=\"relay\"" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute has no gateway: set httpRoute.parentRefs" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress has no host: set ingress.hosts to a list of {host, paths}" -}}
{{- end -}}
{{- if $sidecar -}}
{{- include "relay.validate.deploymentOnly" . -}}
{{- end -}}
{{- end -}}

{{/*
Values of `deployment` can't be told from its defaults but by comparing: a default that is
missing or changed here makes the plainest sidecar fail, which the tests would see.
*/}}
{{- define "relay.validate.deploymentOnly" -}}
{{- $defaults := include "relay.deployment.defaults" . | fromYaml -}}
{{- range $key, $value := .Values.deployment -}}
{{- if ne (toJson $value) (get $defaults $key | toJson) -}}
{{- fail (printf "deployment.%s is set, but in sidecar mode the pods are your API's: set it there, or set mode to deployment" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "relay.deployment.defaults" -}}
replicas: 2
minReadySeconds: 5
revisionHistoryLimit: 5
podLabels: {}
podAnnotations: {}
podSecurityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
imagePullSecrets: []
nodeSelector: {}
tolerations: []
affinity: {}
topologySpreadConstraints: []
priorityClassName: ""
serviceAccount: {create: true, name: "", annotations: {}}
podDisruptionBudget: {enabled: true, maxUnavailable: 1}
autoscaling:
  enabled: false
  minReplicas: 2
  maxReplicas: 10
  targetCPUUtilizationPercentage: 70
  metrics: []
  scaleDown: {stabilizationWindowSeconds: 600, policies: [{type: Pods, value: 1, periodSeconds: 300}]}
networkPolicy: {enabled: false, clientsFrom: [], adminFrom: [], egress: []}
{{- end -}}
