{{- /* A hook cannot do this: it would run on one node. A pod is ready once its node is clean.

Mounted is the folder above the state directory, so that that can go, too. */ -}}
{{- define "gatehouse.cleanup" -}}
initContainers:
  - name: cleanup
    {{- include "gatehouse.container" . | nindent 4 }}
    command: [gatehouse, cleanup, --all]
    securityContext:
      {{- include "gatehouse.may" (list "DAC_OVERRIDE" "NET_ADMIN" "SYS_ADMIN") | nindent 6 }}
      appArmorProfile:
        type: Unconfined
    volumeMounts:
      - name: state
        mountPath: {{ dir .Values.stateDir }}
      {{- include "gatehouse.hostMounts" . | nindent 6 }}
containers:
  - name: clean
    {{- include "gatehouse.container" . | nindent 4 }}
    command: [sleep, infinity]
    securityContext:
      {{- include "gatehouse.may" list | nindent 6 }}
volumes:
  - name: state
    hostPath:
      path: {{ dir .Values.stateDir }}
      type: Directory
  {{- include "gatehouse.hostVolumes" . | nindent 2 }}
{{- end }}
