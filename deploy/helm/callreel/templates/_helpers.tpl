{{- define "callreel.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "callreel.selector" -}}
app.kubernetes.io/name: callreel
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "callreel.labels" -}}
{{ include "callreel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "callreel.secret" -}}
{{ .Values.secret.existing | default (include "callreel.name" .) }}
{{- end }}
