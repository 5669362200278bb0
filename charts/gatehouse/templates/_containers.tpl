{{- define "gatehouse.containers" -}}
{{- $v := .Values -}}
initContainers:
  - name: bpffs
    {{- include "gatehouse.container" . | nindent 4 }}
    {{- include "gatehouse.bpffs" . | nindent 4 }}
containers:
  - name: agent
    {{- include "gatehouse.container" . | nindent 4 }}
    command: [gatehouse, agent, --config, /etc/gatehouse/agent.yaml]
    env:
      - name: GATEHOUSE_STATE_DIR
        value: {{ $v.stateDir }}
      - name: GATEHOUSE_CONFIG # for commands that are run in here, such as `gatehouse preflight`
        value: /etc/gatehouse/agent.yaml
      - name: GATEHOUSE_NODE
        valueFrom:
          fieldRef:
            fieldPath: spec.nodeName
      - name: GATEHOUSE_NAMESPACE # where the Lease is
        valueFrom:
          fieldRef:
            fieldPath: metadata.namespace
      {{- if $v.loadBalancer.maglev.seed }}
      - name: GATEHOUSE_MAGLEV_SEED
        valueFrom:
          secretKeyRef:
            name: {{ .Release.Name }}-maglev
            key: seed
      {{- end }}
      {{- with $v.k8sServiceHost }}
      - name: KUBERNETES_SERVICE_HOST
        value: {{ . | quote }}
      - name: KUBERNETES_SERVICE_PORT
        value: {{ int $v.k8sServicePort | quote }}
      {{- end }}
    ports:
      - name: health
        containerPort: {{ int $v.healthPort }}
      {{- if $v.observability.metrics.enabled }}
      - name: metrics
        containerPort: {{ int $v.observability.metrics.port }}
      {{- end }}
    # /livez: what is desired is in the kernel, or has not been late for a minute. The first start compiles the datapath
    # and reads the cluster.
    startupProbe:
      {{- include "gatehouse.livez" . | nindent 6 }}
      periodSeconds: 2
      failureThreshold: 300
    readinessProbe:
      {{- include "gatehouse.livez" . | nindent 6 }}
      periodSeconds: 10
      failureThreshold: 3
    livenessProbe:
      {{- include "gatehouse.livez" . | nindent 6 }}
      periodSeconds: 30
      timeoutSeconds: 10
      failureThreshold: 10
    securityContext:
      {{- $more := ternary (list "SYS_PTRACE") list $v.hostPID }}
      {{- include "gatehouse.may" (concat (list "BPF" "CHOWN" "DAC_OVERRIDE" "FOWNER" "NET_ADMIN" "NET_RAW" "PERFMON" "SYS_ADMIN") $more) | nindent 6 }}
      appArmorProfile:
        type: Unconfined
    resources:
      {{- toYaml $v.resources | nindent 6 }}
    volumeMounts:
      - name: config
        mountPath: /etc/gatehouse
        readOnly: true
      - name: token
        mountPath: /var/run/secrets/kubernetes.io/serviceaccount
        readOnly: true
      - name: state
        mountPath: {{ $v.stateDir }}
      {{- include "gatehouse.hostMounts" . | nindent 6 }}
  # Helpers have no probes: each ends with what it runs, and the agent sees by their sockets whether they answer.
  - name: flows
    {{- include "gatehouse.helper" (dict "root" . "name" "flows" "resources" $v.observability.flows.resources) | nindent 4 }}
    securityContext:
      {{- include "gatehouse.may" (concat (list "CHOWN" "NET_ADMIN" "SYS_ADMIN") (ternary (list "SYS_PTRACE") list $v.hostPID)) | nindent 6 }}
    volumeMounts:
      - name: state
        mountPath: {{ $v.stateDir }}
      - name: bpffs
        mountPath: /sys/fs/bpf
      - name: netns
        mountPath: /run/netns
        mountPropagation: HostToContainer
  {{- if $v.l7Proxy.enabled }}
  - name: envoy
    {{- include "gatehouse.helper" (dict "root" . "name" "envoy" "resources" $v.l7Proxy.resources) | nindent 4 }}
    securityContext:
      {{- include "gatehouse.may" (list "KILL" "NET_RAW" "SETGID" "SETPCAP" "SETUID") | nindent 6 }}
    volumeMounts:
      - name: state
        mountPath: {{ $v.stateDir }}
  {{- end }}
  {{- if $v.dnsProxy.enabled }}
  - name: dns
    {{- include "gatehouse.helper" (dict "root" . "name" "dns" "resources" $v.dnsProxy.resources) | nindent 4 }}
    securityContext:
      {{- include "gatehouse.may" (list "NET_RAW") | nindent 6 }}
    volumeMounts:
      - name: state
        mountPath: {{ $v.stateDir }}
      - name: bpffs
        mountPath: /sys/fs/bpf
  {{- end }}
  {{- if include "gatehouse.userspace" . }}
  - name: wireguard # idle where the kernel's is used
    {{- include "gatehouse.helper" (dict "root" . "name" "wireguard" "resources" $v.encryption.resources) | nindent 4 }}
    securityContext:
      {{- include "gatehouse.may" (list "NET_ADMIN") | nindent 6 }}
    volumeMounts:
      - name: state
        mountPath: {{ $v.stateDir }}
        readOnly: true
      - name: tun
        mountPath: /dev/net
        readOnly: true # the folder; not the device in it
      {{- include "gatehouse.wireguardMount" . | nindent 6 }}
  {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ .Release.Name }}
  - name: token
    projected:
      sources:
        - serviceAccountToken:
            path: token
            expirationSeconds: 3607
        - configMap:
            name: kube-root-ca.crt
            items:
              - key: ca.crt
                path: ca.crt
        - downwardAPI:
            items:
              - path: namespace
                fieldRef:
                  fieldPath: metadata.namespace
  - name: state
    hostPath:
      path: {{ $v.stateDir }}
      type: DirectoryOrCreate
  {{- include "gatehouse.hostVolumes" . | nindent 2 }}
{{- end }}

{{- /* A container with a helper; root, name, resources. */ -}}
{{- define "gatehouse.helper" -}}
{{- include "gatehouse.container" .root }}
command: [gatehouse, helper, {{ .name }}, --state-dir, {{ .root.Values.stateDir }}]
resources:
  {{- toYaml .resources | nindent 2 }}
{{- end }}

{{- /* A securityContext with these capabilities and no others. For Kubernetes, who has SYS_ADMIN may escalate. */ -}}
{{- define "gatehouse.may" -}}
runAsUser: 0
allowPrivilegeEscalation: {{ has "SYS_ADMIN" . }}
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with . }}
  add: [{{ join ", " . }}]
  {{- end }}
{{- end }}

{{- define "gatehouse.livez" -}}
httpGet:
  host: {{ ternary "127.0.0.1" "::1" .Values.ipv4.enabled | quote }}
  path: /livez
  port: health
{{- end }}

{{- /* Not empty where a program may have to make the WireGuard device. */ -}}
{{- define "gatehouse.userspace" -}}
{{- with .Values.encryption }}{{ if and .enabled (ne .implementation "kernel") }}true{{ end }}{{ end -}}
{{- end }}

{{- /* Of the node, what the agent works on. */ -}}
{{- define "gatehouse.hostMounts" -}}
- name: run
  mountPath: /run/gatehouse
- name: bpffs
  mountPath: /sys/fs/bpf
- name: cgroup
  mountPath: {{ .Values.cgroup.hostRoot }}
- name: netns
  mountPath: /run/netns
  mountPropagation: HostToContainer # pods' namespaces come and go
- name: tmp
  mountPath: /tmp
{{- if include "gatehouse.userspace" . }}
{{ include "gatehouse.wireguardMount" . }}
{{- end }}
{{- if .Values.cni.install }}
- name: cni-bin
  mountPath: {{ .Values.cni.binDir }}
- name: cni-conf
  mountPath: {{ .Values.cni.confDir }}
{{- end }}
{{- end }}

{{- define "gatehouse.wireguardMount" -}}
- name: wireguard
  mountPath: /var/run/wireguard # where `wg` on the node looks for the program's socket
{{- end }}

{{- define "gatehouse.hostVolumes" -}}
- name: run
  hostPath:
    path: /run/gatehouse
    type: DirectoryOrCreate
- name: bpffs
  hostPath:
    path: /sys/fs/bpf
    type: Directory
- name: cgroup
  hostPath:
    path: {{ .Values.cgroup.hostRoot }}
    type: Directory
- name: netns
  hostPath:
    path: /run/netns
    type: DirectoryOrCreate
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
{{- if include "gatehouse.userspace" . }}
- name: wireguard
  hostPath:
    path: /var/run/wireguard
    type: DirectoryOrCreate
{{- if not .Values.cleanup.enabled }}
- name: tun # the folder: where the kernel has WireGuard, the device need not be there
  hostPath:
    path: /dev/net
    type: DirectoryOrCreate
{{- end }}
{{- end }}
{{- if .Values.cni.install }}
- name: cni-bin
  hostPath:
    path: {{ .Values.cni.binDir }}
    type: DirectoryOrCreate
- name: cni-conf
  hostPath:
    path: {{ .Values.cni.confDir }}
    type: DirectoryOrCreate
{{- end }}
{{- if and .Values.bpffs.mount (not .Values.cleanup.enabled) }}
- name: proc
  hostPath:
    path: /proc
    type: Directory
{{- end }}
{{- end }}

{{- /* Pins have to outlive containers: the node itself must have a BPF file system. */ -}}
{{- define "gatehouse.bpffs" -}}
{{- if .Values.bpffs.mount -}}
command: [nsenter, --mount=/host/proc/1/ns/mnt, sh, -ec]
args: ['[ "$(stat -f -c %t /sys/fs/bpf)" = cafe4a11 ] || mount -t bpf bpf /sys/fs/bpf']
securityContext:
  {{- include "gatehouse.may" (list "SYS_ADMIN" "SYS_CHROOT" "SYS_PTRACE") | nindent 2 }}
  appArmorProfile:
    type: Unconfined
volumeMounts:
  - name: proc
    mountPath: /host/proc
    readOnly: true
{{- else -}}
command: [sh, -ec]
args:
  - |
    [ "$(stat -f -c %t /sys/fs/bpf)" = cafe4a11 ] && exit
    echo "No BPF file system is mounted at /sys/fs/bpf of this node, and policy has to outlive the agent there:" \
      "run \`mount -t bpf bpf /sys/fs/bpf\` on the node at each boot, or set bpffs.mount of the chart." >&2
    exit 1
securityContext:
  {{- include "gatehouse.may" list | nindent 2 }}
volumeMounts:
  - name: bpffs
    mountPath: /sys/fs/bpf
    readOnly: true
{{- end }}
{{- end }}
