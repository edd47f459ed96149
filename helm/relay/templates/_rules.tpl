{{/* The alerts. `tests/chart/rules.test.yaml` proves when each fires and when it does not. */}}
{{- define "relay.rules" -}}
{{- $relay := include "relay.seriesSelector" . -}}
{{- $at := .Values.metrics.rules.thresholds -}}
{{- $runbook := .Values.metrics.rules.runbookUrl -}}
{{- /* A set that is fetched rarely may be older. */ -}}
{{- $jwksAge := $at.jwksAgeSeconds -}}
{{- range dig "auth" "key" list .Values.config -}}
{{- with .refresh }}{{ $jwksAge = maxf $jwksAge (mul 2 (include "relay.seconds" . | int)) }}{{ end -}}
{{- end -}}
groups:
  - name: relay
    rules:
      - alert: RelayDown
        expr: up{ {{- $relay -}} } == 0 or absent(up{ {{- $relay -}} })
        for: 2m
        labels:
          severity: critical
        annotations:
          summary: A relay can't be scraped, or none is there.
          runbook_url: {{ $runbook }}#relaydown
      - alert: RelayRedisDown
        expr: relay_redis_up{ {{- $relay -}} } == 0
        for: 1m
        labels:
          severity: critical
        annotations:
          summary: A relay gets no answers from Redis, and its clients see old state.
          runbook_url: {{ $runbook }}#relayredisdown
      - alert: RelayDeliveryLate
        expr: |
          histogram_quantile(0.99, sum by (le, route) (rate(relay_delivery_latency_seconds_bucket{ {{- $relay -}} }[5m]))) > {{ $at.deliveryLatencySeconds }}
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: Of the entries of route {{ "{{ $labels.route }}" }}, 1 % reach their clients after {{ "{{ $value | humanizeDuration }}" }} or later.
          runbook_url: {{ $runbook }}#relaydeliverylate
      - alert: RelaySnapshotsFail
        expr: |
          sum by (route) (rate(relay_snapshot_requests_total{ {{- $relay -}} ,outcome!~"ok|refused|abandoned"}[5m]))
            / sum by (route) (rate(relay_snapshot_requests_total{ {{- $relay -}} }[5m])) > {{ $at.snapshotErrorRatio }}
        for: 5m
        labels:
          severity: critical
        annotations:
          summary: The API answers {{ "{{ $value | humanizePercentage }}" }} of the snapshot callbacks of route {{ "{{ $labels.route }}" }} with an error or not at all.
          runbook_url: {{ $runbook }}#relaysnapshotsfail
      - alert: RelayResyncs
        expr: |
          sum by (route, reason) (rate(relay_resyncs_total{ {{- $relay -}} }[15m])) > {{ $at.resyncsPerSecond }}
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: Clients of route {{ "{{ $labels.route }}" }} lose their place in the stream ({{ "{{ $labels.reason }}" }}).
          runbook_url: {{ $runbook }}#relayresyncs
      - alert: RelaySlowClients
        expr: |
          sum by (route) (rate(relay_closes_total{ {{- $relay -}} ,code="4408"}[5m])) > {{ $at.slowClosesPerSecond }}
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: Clients of route {{ "{{ $labels.route }}" }} are closed because they take too little.
          runbook_url: {{ $runbook }}#relayslowclients
      - alert: RelayConnectionsNearLimit
        expr: relay_connections{ {{- $relay -}} } / relay_connections_limit{ {{- $relay -}} } > {{ $at.connectionsRatio }}
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: A relay has {{ "{{ $value | humanizePercentage }}" }} of the connections that it takes at most.
          runbook_url: {{ $runbook }}#relayconnectionsnearlimit
      - alert: RelayTokenRejections
        expr: |
          sum by (reason) (rate(relay_token_rejections_total{ {{- $relay -}} }[5m])) > {{ $at.tokenRejectionsPerSecond }}
        for: 10m
        labels:
          severity: warning
        annotations:
          summary: Tokens are refused ({{ "{{ $labels.reason }}" }}).
          runbook_url: {{ $runbook }}#relaytokenrejections
      - alert: RelayJwksStale
        expr: time() - relay_jwks_last_success_timestamp_seconds{ {{- $relay -}} } > {{ $jwksAge }}
        for: 5m
        labels:
          severity: warning
        annotations:
          summary: A relay has not been able to fetch the JWKS of auth.key {{ "{{ $labels.key }}" }} for long, or ever.
          runbook_url: {{ $runbook }}#relayjwksstale
      - alert: RelayKeyFileUnusable
        expr: relay_key_file_unusable{ {{- $relay -}} } == 1
        for: 1m
        labels:
          severity: critical
        annotations:
          summary: The file of auth.key {{ "{{ $labels.key }}" }} has changed and can't be used; the old key stays.
          runbook_url: {{ $runbook }}#relaykeyfileunusable
      - alert: RelayCertificateUnusable
        expr: relay_tls_certificate_unusable{ {{- $relay -}} } == 1
        for: 1m
        labels:
          severity: critical
        annotations:
          summary: The files of the TLS certificate have changed and can't be used; the old one stays until it expires.
          runbook_url: {{ $runbook }}#relaycertificateunusable
      - alert: RelayVersionSkew
        expr: count(count by (version) (relay_build_info{ {{- $relay -}} })) > 1
        for: 1h
        labels:
          severity: warning
        annotations:
          summary: Relays of {{ "{{ $value }}" }} versions run beside each other; a rollout is stuck.
          runbook_url: {{ $runbook }}#relayversionskew
{{- end -}}
