{{- /* What values must be together. Renders nothing; fails with a sentence that says what to do. */ -}}
{{- define "gatehouse.check" -}}
{{- $v := .Values -}}

{{- /* What this version does not have. */ -}}
{{- if not $v.kubeProxyReplacement }}
{{- fail "kubeProxyReplacement: false cannot be honoured: Gatehouse serves services wherever it runs, and a kube-proxy beside it would translate them twice. Leave it true, and remove kube-proxy." }}
{{- end }}
{{- if $v.audit.enabled }}
{{- fail "audit.enabled: this version of Gatehouse writes no audit records: leave it false." }}
{{- end }}

{{- /* Addresses. */ -}}
{{- if not (or $v.ipv4.enabled $v.ipv6.enabled) }}
{{- fail "ipv4.enabled, ipv6.enabled: pods without any address have no network: enable at least one." }}
{{- end }}
{{- if and (eq $v.ipam.mode "pool") (not $v.ipam.pool) }}
{{- fail "ipam.pool is empty: give the block nodes take theirs from, such as {cidr: 10.244.0.0/16, blockBits: 24}." }}
{{- end }}
{{- if and (ne $v.ipam.mode "pool") $v.ipam.pool }}
{{- fail (printf "ipam.pool is for ipam.mode pool, and ipam.mode is %s: leave one of them out." $v.ipam.mode) }}
{{- end }}
{{- $families := dict }}
{{- range $v.ipam.pool }}
{{- $family := ternary "ipv6" "ipv4" (contains ":" .cidr) }}
{{- if hasKey $families $family }}
{{- fail "ipam.pool: give at most one block for each of IPv4 and IPv6." }}
{{- end }}
{{- $_ := set $families $family true }}
{{- $own := index (splitList "/" .cidr) 1 | int }}
{{- $smallest := ternary 124 30 (eq $family "ipv6") }}
{{- if or (le (int .blockBits) $own) (gt (int .blockBits) $smallest) }}
{{- fail (printf "ipam.pool: blockBits %d is no part of %s for a node: choose %d to %d." (int .blockBits) .cidr (add1 $own) $smallest) }}
{{- end }}
{{- end }}
{{- if $v.ipam.pool }}
{{- range $family := list "ipv4" "ipv6" }}
{{- if and (hasKey $families $family) (not (index $v $family).enabled) }}
{{- fail (printf "ipam.pool has a block of %s, and %s.enabled is false: leave one of them out." $family $family) }}
{{- end }}
{{- end }}
{{- end }}
{{- $families = dict }}
{{- range $v.serviceCIDRs }}
{{- $family := ternary "ipv6" "ipv4" (contains ":" .) }}
{{- if hasKey $families $family }}
{{- fail "serviceCIDRs: give at most one block for each of IPv4 and IPv6." }}
{{- end }}
{{- $_ := set $families $family true }}
{{- end }}

{{- /* CNI. */ -}}
{{- if $v.cni.chain }}
{{- if not $v.cni.install }}
{{- fail "cni.chain needs cni.install: Gatehouse writes the configuration with both plugins." }}
{{- end }}
{{- if ne $v.routingMode "off" }}
{{- fail (printf "cni.chain: the plugin before Gatehouse brings packets to other nodes: set routingMode to \"off\" (it is %s)." $v.routingMode) }}
{{- end }}
{{- if ne $v.ipam.mode "kubernetes" }}
{{- fail "cni.chain: the plugin before Gatehouse gives pods their addresses: leave ipam.mode at kubernetes." }}
{{- end }}
{{- end }}

{{- /* Devices. */ -}}
{{- if and (has "auto" $v.devices) (gt (len $v.devices) 1) }}
{{- fail "devices: give either auto or names." }}
{{- end }}
{{- if not $v.devices }}
{{- if $v.masquerade.enabled }}
{{- fail "masquerade.enabled: it is done at the nodes' devices, and devices is empty: name them, or leave it at [auto]." }}
{{- end }}
{{- if ne $v.loadBalancer.mode "snat" }}
{{- fail (printf "loadBalancer.mode: %s is done at the nodes' devices, and devices is empty: name them, or leave it at [auto]." $v.loadBalancer.mode) }}
{{- end }}
{{- if ne $v.loadBalancer.acceleration "disabled" }}
{{- fail "loadBalancer.acceleration: XDP is done at the nodes' devices, and devices is empty: name them, or leave it at [auto]." }}
{{- end }}
{{- end }}

{{- /* Encryption, large packets. */ -}}
{{- if $v.encryption.enabled }}
{{- if $v.cni.chain }}
{{- fail "encryption.enabled: the plugin before Gatehouse (cni.chain) gives pods their addresses and ways to other nodes, maybe tunnels, so which packets are pods' is not known: leave it false, and have that plugin encrypt." }}
{{- end }}
{{- if and $v.encryption.strictMode (not $v.clusterCIDRs) (not $v.ipam.pool) }}
{{- fail "encryption.strictMode: which addresses are pods' of nodes that were not heard of is not known: give the blocks of all pods in clusterCIDRs." }}
{{- end }}
{{- if not $v.devices }}
{{- fail "encryption.enabled: it is done at the nodes' devices, and devices is empty: name them, or leave it at [auto]." }}
{{- end }}
{{- else }}
{{- range $name := list "nodeEncryption" "strictMode" }}
{{- if index $v.encryption $name }}
{{- fail (printf "encryption.%s is nothing without encryption.enabled: set that, too, or leave it false." $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $v.bigTCP.enabled }}
{{- if $v.encryption.enabled }}
{{- fail "bigTCP.enabled: WireGuard takes no such packets: choose it, or encryption.enabled." }}
{{- end }}
{{- if eq $v.routingMode "vxlan" }}
{{- fail "bigTCP.enabled: VXLAN takes no such packets: leave it false, or set routingMode to native." }}
{{- end }}
{{- end }}

{{- /* Services. */ -}}
{{- $size := int $v.loadBalancer.maglev.tableSize }}
{{- range $n := untilStep 2 363 1 }}
{{- if and (lt $n $size) (eq (mod $size $n) 0) }}
{{- fail (printf "loadBalancer.maglev.tableSize: %d is not a prime number; 16381 and 65521 are." $size) }}
{{- end }}
{{- end }}

{{- /* Ports: no two of these may have one in common. */ -}}
{{- $ranges := dict "loadBalancer.nodePortRange" $v.loadBalancer.nodePortRange "loadBalancer.snatPortRange" $v.loadBalancer.snatPortRange "proxyPortRange" $v.proxyPortRange }}
{{- $_ := set $ranges "healthPort" (printf "%d-%d" (int $v.healthPort) (int $v.healthPort)) }}
{{- if eq $v.routingMode "vxlan" }}
{{- $_ := set $ranges "tunnelPort" (printf "%d-%d" (int $v.tunnelPort) (int $v.tunnelPort)) }}
{{- end }}
{{- if $v.encryption.enabled }}
{{- $_ := set $ranges "encryption.port" (printf "%d-%d" (int $v.encryption.port) (int $v.encryption.port)) }}
{{- end }}
{{- if $v.observability.metrics.enabled }}
{{- $_ := set $ranges "observability.metrics.port" (printf "%d-%d" (int $v.observability.metrics.port) (int $v.observability.metrics.port)) }}
{{- end }}
{{- range $one, $range := $ranges }}
{{- $ends := splitList "-" $range }}
{{- $first := index $ends 0 | int }}
{{- $last := index $ends 1 | int }}
{{- if or (gt $first $last) (gt $last 65535) }}
{{- fail (printf "%s: %s does not go upwards within 1-65535." $one $range) }}
{{- end }}
{{- range $other, $theirs := $ranges }}
{{- $bounds := splitList "-" $theirs }}
{{- if and (lt $one $other) (le $first (index $bounds 1 | int)) (le (index $bounds 0 | int) $last) }}
{{- fail (printf "%s (%s) and %s (%s) have a port in common: keep them apart." $one $range $other $theirs) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What is seen. */ -}}
{{- if and $v.observability.serviceMonitor.enabled (not $v.observability.metrics.enabled) }}
{{- fail "observability.serviceMonitor.enabled: there is nothing to scrape: set observability.metrics.enabled, too." }}
{{- end }}
{{- end }}
