{{- define "fedless.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "fedless.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: aggregator
{{- end }}

{{- define "fedless.labels" -}}
{{ include "fedless.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "fedless.databaseSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: database
{{- end }}

{{- define "fedless.account" -}}
{{- .Values.serviceAccount.name | default (include "fedless.name" .) -}}
{{- end }}

{{- define "fedless.databaseUrl" -}}
{{- if .Values.postgresql.enabled }}postgresql://fedless@{{ include "fedless.name" . }}-database/fedless{{ else }}{{ .Values.database.url }}{{ end -}}
{{- end }}

{{- define "fedless.databaseSecret" -}}
{{- if .Values.postgresql.enabled }}{{ include "fedless.name" . }}-database{{ else }}{{ .Values.database.passwordSecret }}{{ end -}}
{{- end }}

{{/* A table of aggregator.toml. Helm reads every number as a float, and TOML tells 2000 from 2000.0. */}}
{{- define "fedless.table" -}}
{{- range $key, $value := . }}
{{ $key }} = {{ if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ int64 $value }}{{ else }}{{ toJson $value }}{{ end }}
{{- end }}
{{- end }}
