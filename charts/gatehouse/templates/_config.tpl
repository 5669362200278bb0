{{- /* The agent's settings: agent/config/fields.py says what they mean. Node, namespace and state directory are given by variables. */ -}}
{{- define "gatehouse.config" -}}
{{- $v := .Values -}}
{{- $any := ternary "0.0.0.0" "[::]" $v.ipv4.enabled -}}
source: kubernetes
pods: cni
helpers: containers
node_sysctls: true
policy_enforcement: {{ $v.policyEnforcementMode }}
secret_namespaces: {{ $v.tlsSecretNamespaces | toJson }}

families: {{ include "gatehouse.families" . }}
ipam: {{ ternary "node" "pool" (eq $v.ipam.mode "kubernetes") }}
{{- with $v.ipam.pool }}
pool:
{{- range . }}
  - {{ .cidr | quote }}
{{- end }}
pool_block_bits:
{{- range . }}
  - {{ int .blockBits }}
{{- end }}
{{- end }}
cluster_cidrs: {{ include "gatehouse.clusterCIDRs" . }}
service_cidrs: {{ $v.serviceCIDRs | toJson }}

routing: {{ $v.routingMode | quote }}
tunnel_port: {{ int $v.tunnelPort }}
mtu: {{ int $v.mtu }}
big_tcp: {{ $v.bigTCP.enabled }}
devices: {{ $v.devices | toJson }}
masquerade: {{ $v.masquerade.enabled }}
masquerade_exclude: {{ $v.masquerade.exclude | toJson }}

{{- with $v.encryption }}

encryption: {{ ternary .type "off" .enabled | quote }}
{{- if .enabled }}
wireguard: {{ .implementation }}
encryption_port: {{ int .port }}
node_encryption: {{ .nodeEncryption }}
strict_encryption: {{ .strictMode }}
keepalive_s: {{ int .keepaliveSeconds }}
key_rotation_days: {{ .keyRotationDays | toJson }}
{{- end }}
{{- end }}
{{- if $v.cni.install }}

cni_conf_dir: {{ $v.cni.confDir }}
cni_bin_dir: {{ $v.cni.binDir }}
{{- with $v.cni.chain }}
cni_chain: {{ . }}
{{- end }}
{{- end }}

{{- with $v.loadBalancer }}

algorithm: {{ .algorithm }}
maglev_size: {{ int .maglev.tableSize }}
forwarding: {{ .mode }}
xdp: {{ ternary "off" .acceleration (eq .acceleration "disabled") | quote }}
socket_lb: {{ .socketLB | quote }}
cgroup: {{ ternary "" $v.cgroup.hostRoot (eq .socketLB "off") | quote }}
node_ports: {{ .nodePortRange }}
node_port_addresses: {{ .nodePortAddresses | toJson }}
snat_ports: {{ .snatPortRange }}
external_ips: {{ .externalIPs }}
{{- end }}

l7_proxy: {{ include "gatehouse.proxy" $v.l7Proxy }}
envoy_threads: {{ int $v.l7Proxy.threads }}
dns_proxy: {{ include "gatehouse.proxy" $v.dnsProxy }}
dns_refuse: {{ $v.dnsProxy.denied }}
dns_min_ttl: {{ int $v.dnsProxy.minTTL }}
dns_max_addresses: {{ int $v.dnsProxy.maxAddresses }}
proxy_ports: {{ $v.proxyPortRange }}

healthz: {{ printf "%s:%d" $any (int $v.healthPort) | quote }}
{{- with $v.observability }}
{{- if .metrics.enabled }}
metrics: {{ printf "%s:%d" $any (int .metrics.port) | quote }}
{{- end }}
flows_ring: {{ int .flows.ringSize }}
l7_unredacted: {{ .flows.l7Unredacted }}
log_format: {{ .log.format }}
log_level: {{ .log.level }}
{{- end }}
{{- range $name, $value := $v.extraConfig }}
{{ $name }}: {{ $value | toJson }}
{{- end }}
{{- end }}

{{- define "gatehouse.families" -}}
{{- $on := list -}}
{{- range list "ipv4" "ipv6" -}}
{{- if (index $.Values .).enabled }}{{ $on = append $on . }}{{ end -}}
{{- end -}}
{{ $on | toJson }}
{{- end }}

{{- define "gatehouse.clusterCIDRs" -}}
{{- $blocks := list -}}
{{- range .Values.ipam.pool }}{{ $blocks = append $blocks .cidr }}{{ end -}}
{{ .Values.clusterCIDRs | default $blocks | toJson }}
{{- end }}

{{- define "gatehouse.proxy" -}}
{{- if not .enabled }}"off"{{ else if eq .startup "always" }}"on"{{ else }}auto{{ end -}}
{{- end }}
