{{- /* The part of all names: at most 40 characters, so that every suffix and every pod's name stays below 63. */ -}}
{{- define "darkroom.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name }}{{ $full = .Release.Name }}{{ end -}}
{{- if .Values.fullnameOverride }}{{ $full = .Values.fullnameOverride }}{{ end -}}
{{- if gt (len $full) 40 -}}
{{- /* Two long names that begin alike must not meet. */ -}}
{{- $full = printf "%s-%s" ($full | trunc 31 | trimSuffix "-") ($full | sha256sum | trunc 8) -}}
{{- end -}}
{{- $full -}}
{{- end }}

{{- define "darkroom.selectorLabels" -}}
app.kubernetes.io/name: darkroom
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "darkroom.labels" -}}
{{ include "darkroom.selectorLabels" . }}
app.kubernetes.io/part-of: darkroom
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels of a pod. They hold no version: a selector and a running Job must survive an upgrade. */ -}}
{{- define "darkroom.podLabels" -}}
{{ include "darkroom.selectorLabels" .root }}
app.kubernetes.io/part-of: darkroom
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "darkroom.image" -}}
{{- $image := .image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{- if .root.Values.requireDigests }}{{ fail (printf "%s.digest is empty, but requireDigests is true: expected sha256:… of what was pushed (`make images` prints it)" .name) }}{{ end -}}
{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "darkroom.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "darkroom.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "darkroom.env" -}}
- {name: HOME, value: /tmp}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- /* References to secrets, whose values are never seen here. Each pod gets only those that it uses. */ -}}
{{- define "darkroom.storeEnv" -}}
{{- with .Values.secrets.s3 -}}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}}
{{- end }}
{{- end }}

{{- define "darkroom.hubEnv" -}}
{{- $given := list -}}
{{- with .Values.secrets.huggingFace }}{{ $given = append $given (list "HF_TOKEN" .) }}{{ end -}}
{{- with .Values.secrets.wandb }}{{ $given = append $given (list "WANDB_API_KEY" .) }}{{ end -}}
{{- range $index, $of := $given -}}
{{- if $index }}{{ "\n" }}{{ end -}}
- {name: {{ first $of }}, valueFrom: {secretKeyRef: {name: {{ last $of }}, key: {{ first $of }}}}}
{{- end }}
{{- end }}

{{- define "darkroom.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What `darkroom deploy` reads; `schedules` is empty where the release is about to go. */ -}}
{{- define "darkroom.deployment" -}}
{{- $root := .root -}}
endpoint: {{ $root.Values.kfp.endpoint }}
namespace: {{ ternary $root.Release.Namespace $root.Values.kfp.namespace $root.Values.kfp.multiUser }}
pipeline: {{ $root.Values.pipeline.name }}
experiment: {{ $root.Values.pipeline.experiment }}
image: {{ include "darkroom.image" (dict "root" $root "image" $root.Values.image "name" "image") }}
gpu_image: {{ include "darkroom.image" (dict "root" $root "image" $root.Values.gpuImage "name" "gpuImage") }}
image_pull_policy: {{ $root.Values.image.pullPolicy }}
image_pull_secrets: {{ toJson $root.Values.imagePullSecrets }}
service_account: {{ include "darkroom.fullname" $root }}-pipeline
launcher_secret: {{ include "darkroom.fullname" $root }}-launcher
recipe: {{ $root.Values.pipeline.recipe | quote }}
workdir: {{ $root.Values.workdir | quote }}
runtime: {{ $root.Values.trainer.runtime }}
pod_grace_seconds: {{ $root.Values.trainer.gracePeriodSeconds }}
queue: {{ ternary $root.Values.queue.name "" $root.Values.queue.create | quote }}
cloud: {{ $root.Values.cloud }}
config_maps:
  recipes: {{ include "darkroom.fullname" $root }}-recipes
  prices: {{ include "darkroom.fullname" $root }}-prices
retries: {{ $root.Values.pipeline.retries }}
secrets: {{ toJson $root.Values.secrets }}
env: {{ toJson $root.Values.env }}
{{- if .schedules }}
schedules:
{{- range .schedules }}
  - name: {{ .name }}
    cron: {{ .cron | quote }}
    recipe: {{ .recipe | quote }}
    workdir: {{ default $root.Values.workdir .workdir | quote }}
    source: {{ default "" .source | quote }}
    overrides: {{ toJson (default list .overrides) }}
    enabled: {{ ternary .enabled true (hasKey . "enabled") }}
{{- end }}
{{- else }}
schedules: []
{{- end }}
{{- end }}
