/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the kernel side and the Python side must agree on, declared once.
 *
 * agent/datapath/abi.py reads this file: it understands `#define NAME NUMBER`, `enum`,
 * `struct` of the fixed-width types below (nested structs and arrays of them included), and the
 * GH_MAPS table. Keep to that subset. Every struct is laid out without implicit padding.
 *
 * Addresses are 128-bit; an IPv4 address is held IPv4-mapped (::ffff:a.b.c.d).
 * Names say units (_ns) and byte order (_be); all else is host order.
 * Zero is always the closed value: verdict 0 is deny, identity 0 and class 0 are unknown and match no allow.
 */
#ifndef GATEHOUSE_ABI_H
#define GATEHOUSE_ABI_H

/* ---- numbers ------------------------------------------------------------------------- */

#define IDENTITY_UNKNOWN      0
#define IDENTITY_HOST         1
#define IDENTITY_WORLD        2
#define IDENTITY_UNMANAGED    3
#define IDENTITY_HEALTH       4
#define IDENTITY_INIT         5
#define IDENTITY_REMOTE_NODE  6
#define IDENTITY_APISERVER    7
#define IDENTITY_INGRESS      8
#define IDENTITY_WORLD_IPV4   9
#define IDENTITY_WORLD_IPV6   10
#define IDENTITY_CLUSTER_MIN  256
#define IDENTITY_CLUSTER_MAX  65535
#define IDENTITY_LOCAL_MIN    16777217

/* A policy_class key with this remote holds the row of every remote that has no row of its own. */
#define CLASS_ANY             0xffffffffffffffff

/* Rule ids that are not the hash of a written rule. */
#define RULE_NONE             0
#define RULE_NOT_ISOLATED     1
#define RULE_HOST             2
#define RULE_SELF             3

/* policy_row keys: bits of (row, protocol, zero, port) that an entry fixes. */
#define ROW_BITS_ANY          64
#define ROW_BITS_PROTOCOL     80
#define ROW_BITS_PORT         96

/* A pod that reaches itself through a service sees this peer: 169.254.42.1 and fdff:6761:7465::1. */
#define HAIRPIN_V4_BE_BYTES   "\xa9\xfe\x2a\x01"
#define HAIRPIN_V6_BE_BYTES   "\xfd\xff\x67\x61\x74\x65\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"

/* Source ports that are tried for a flow whose answers would be mistaken for another's, before it is given up. */
#define PORT_TRIES            16

/* A Maglev table is a map of 64-bit elements: the first is its size, each other one has four slots of 16 bits, the
 * first of them in the lowest bits. */
#define MAGLEV_LANES          4

/* source_ranges keys: bits of the ranges' number, before those of the address. */
#define RANGES_BITS           64

/* A reset ends a connection only if its sequence number is this close to what the other end has acknowledged: to guess
 * that blindly takes some 2,000 packets for each tuple. Either way it passes, and the end it is for decides. */
#define RESET_WINDOW          1048576

/* Marks of packets in the node's namespace; a packet that leaves a namespace loses its mark, so no pod can set them.
 * To a proxy's socket: a rule for this mark leads to a table in which everything is local. From a proxy: what it sends
 * on for a pod whose egress (ingress) it has judged; what it answers to the one who began. */
#define MARK_TO_PROXY         0x6a7e0001
#define MARK_FROM_EGRESS      0x6a7e0002
#define MARK_FROM_INGRESS     0x6a7e0003
#define MARK_PROXY_ANSWERS    0x6a7e0004
/* Of encryption. What WireGuard itself sends; what a pod answers to somebody whose packets came encrypted; what came
 * encrypted, once it is as its sender made it. */
#define MARK_WIREGUARD        0x6a7e0005
#define MARK_ENCRYPT          0x6a7e0006
#define MARK_DECRYPTED        0x6a7e0007
/* From to_pod to from_pod of the same device, where alone a packet can be given to a socket; in the lower 16 bits the port
 * at which the proxy listens, 0: to a connection that there must be. */
#define MARK_HAND_ON          0x6a7f0000
#define PROXY_TABLE           2076

/* Extension headers of one IPv6 packet that are followed. */
#define EXTENSION_HEADERS     6

enum direction { DIRECTION_INGRESS = 0, DIRECTION_EGRESS = 1 };

/* REDIRECT: the proxy behind the cell's listener decides. */
enum verdict { VERDICT_DENY = 0, VERDICT_ALLOW = 1, VERDICT_REDIRECT = 2 };

enum event_type { EVENT_NEW = 1, EVENT_END = 2, EVENT_DROP = 3 };

enum hook {
	HOOK_FROM_POD = 1,
	HOOK_TO_POD = 2,
	HOOK_FROM_NETWORK = 3,      /* tc ingress of a device of the node */
	HOOK_TO_NETWORK = 4,        /* tc egress of such a device */
	HOOK_XDP = 5,
	HOOK_SOCKET = 6,
	HOOK_FROM_WIREGUARD = 7     /* tc ingress of the WireGuard device */
};

/* Why a packet was dropped (or refused: the sender was told at once). Index of the counters map. */
enum drop_reason {
	DROP_NONE = 0,              /* not dropped: counts packets passed */
	DROP_UNKNOWN_ENDPOINT = 1,  /* the interface is not (or no longer) an endpoint's */
	DROP_SPOOFED_SOURCE = 2,    /* the source address is not the endpoint's own */
	DROP_WRONG_DESTINATION = 3, /* delivered to an interface that does not own the address */
	DROP_UNSUPPORTED_PROTOCOL = 4, /* neither IP nor ARP, a VLAN tag, or a pod's VXLAN for a node */
	DROP_MALFORMED = 5,         /* truncated or contradictory headers */
	DROP_SOURCE_ROUTE = 6,      /* IPv4 source route, IPv6 routing header */
	DROP_EXTENSION_HEADERS = 7, /* more IPv6 extension headers than are followed */
	DROP_FRAGMENT_UNKNOWN = 8,  /* a later fragment whose first was not seen */
	DROP_FRAGMENT_TINY = 9,     /* a first fragment too short for its ports, or one that overlaps it */
	DROP_POLICY_EGRESS = 10,    /* no egress rule allows it */
	DROP_POLICY_INGRESS = 11,   /* no ingress rule allows it */
	DROP_UNKNOWN_IDENTITY = 12, /* the remote address has no identity */
	DROP_CONNTRACK_FULL = 13,   /* no room to track a new flow */
	DROP_TUPLE_TAKEN = 14,      /* no source port was free under which the backend could tell this flow from others */
	DROP_NO_BACKEND = 15,       /* refused: the service has no ready backend */
	DROP_ICMP_UNRELATED = 16,   /* an ICMP error that belongs to no tracked flow */
	DROP_LINK_CONTROL = 17,     /* ARP, neighbour discovery or multicast that a pod has no use for */
	DROP_TRANSLATION = 18,      /* rewriting the packet failed */
	DROP_SCTP_PORT = 19,        /* an SCTP service that changes the port, where the checksum cannot follow */
	DROP_INTERNAL = 20,         /* a map or scratch space that must exist does not */
	DROP_NO_LOCAL_BACKEND = 21, /* traffic policy Local, and no backend on this node */
	DROP_SOURCE_RANGE = 22,     /* the client is not in the service's loadBalancerSourceRanges */
	DROP_BACKEND_GONE = 23,     /* refused: the backend of a live flow is gone */
	DROP_AFFINITY_FULL = 24,    /* no room to remember which backend a client is to keep */
	DROP_NAT_FULL = 25,         /* no room to remember a translation at the node's devices */
	DROP_NAT_PORTS = 26,        /* no source port of the node was free towards this destination */
	DROP_TOO_BIG = 27,          /* refused: with what has to be added the packet exceeds the MTU */
	DROP_NO_ROUTE = 28,         /* the node has no way to the backend */
	DROP_TTL_EXCEEDED = 29,     /* refused: its hop limit ends at this node */
	DROP_PROXY_UNREADY = 30,    /* the proxy that is to judge it has not said yet that it does, or does not run */
	DROP_PROXY_DENIED = 31,     /* a request, name or TLS connection that no rule allows (a proxy's verdict) */
	DROP_PROXY_FRAGMENT = 32,   /* a fragment that would have to begin a flow to a proxy */
	DROP_UNENCRYPTED = 33,      /* between pods of different nodes, and not encrypted */
	DROP_REASONS = 34
};

/* Index of the tallies map: what else the datapath counts. */
enum tally {
	TALLY_EVENTS_LOST = 0,      /* the ring was full */
	TALLY_CONNTRACK_FULL = 1,
	TALLY_FRAGMENT_FULL = 2,
	TALLY_REJUDGED = 3,         /* live flows judged anew after a policy change */
	TALLY_NAT_FULL = 4,
	TALLY_AFFINITY_FULL = 5,
	TALLY_SOCKETS_FULL = 6,     /* a connection went on untranslated at the socket: tc does it */
	TALLY_XDP_FORWARDED = 7,    /* packets that XDP sent on by itself */
	TALLY_PLAINTEXT = 8,        /* packets between pods of different nodes that were not encrypted */
	TALLIES = 9
};

enum conntrack_flags {
	CT_REPLY = 1,        /* this entry is for packets towards the originator */
	CT_SERVICE = 2,      /* through a frontend: the destination (forward) or the source (reply) is translated */
	CT_SOURCE = 4,       /* forward: the source is translated, too (hairpin address, another port); reply: back */
	CT_ESTABLISHED = 8,  /* both directions have been seen */
	CT_FIN = 16,         /* a FIN has passed in this entry's direction */
	CT_CLOSED = 32,      /* RST, or FIN in both: short time-out; a SYN starts anew */
	CT_ENDED = 64,       /* the end has been reported */
	CT_LOCAL = 128,      /* both ends are local pods: never legitimate at to-pod */
	CT_GONE = 256,       /* set by user space: the backend is no more, or the rules by which its proxy judges it; the next
	                      * packet is refused */
	CT_TO_PROXY = 512,   /* this entry's packets go to a proxy's socket … */
	CT_FROM_PROXY = 1024, /* … or come from one: those of the flow's other direction go there */
	CT_FROM_INGRESS = 2048, /* of leg 1: what the proxy of an ingress rule sends on, having judged it */
	CT_ENCRYPTED = 4096  /* the last packet that came in by the stack had been encrypted; until one has: those that go out are */
};

/* What the frontend is, and how it forwards. */
enum service_flags {
	SERVICE_CLUSTER_IP = 1,
	SERVICE_NODE_PORT = 2,
	SERVICE_EXTERNAL_IP = 4,
	SERVICE_LOAD_BALANCER = 8,
	SERVICE_HOST_PORT = 16,
	SERVICE_LOOPBACK = 32,       /* a node port at a loopback address: for sockets of the node alone */
	SERVICE_DROP_INSIDE = 64,    /* where count_inside is 0: drop, not refuse */
	SERVICE_DROP_OUTSIDE = 128,
	SERVICE_LOCAL_OUTSIDE = 256, /* externalTrafficPolicy Local: clients outside keep their address */
	SERVICE_MAGLEV = 512,        /* the maglev map has a table for each of its pools */
	SERVICE_DSR = 1024,          /* to backends on other nodes by direct server return, not SNAT */
	SERVICE_NODE_IN_RANGES = 2048 /* an address of this node is in its source ranges */
};

/* What the nat map's entries are for. */
enum nat_flags {
	NAT_REPLY = 1,       /* towards the originator */
	NAT_ESTABLISHED = 2, /* both directions have been seen */
	NAT_CLOSED = 4,
	NAT_FORWARD = 8,     /* to a backend on another node, by SNAT */
	NAT_DSR = 16,        /* at the backend's node: answers take the frontend's address; at the other: the option is added */
	NAT_MASQUERADE = 32, /* a pod's flow that leaves the cluster */
	NAT_FIN = 64,
	NAT_GONE = 128       /* as CT_GONE */
};

enum endpoint_flags {
	ENDPOINT_RESOLVES = 1        /* it has no permanent neighbours: ARP and neighbour discovery pass between it and the node */
};

enum feature {
	FEATURE_MASQUERADE = 1,
	FEATURE_SOCKET_PODS = 2,     /* sockets of pods are translated too, not only the node's */
	FEATURE_PROXY = 4,           /* there are proxies: packets may be theirs */
	FEATURE_ENCRYPT = 8,         /* between nodes, as the map of that name says */
	FEATURE_STRICT = 16,         /* … and never without it */
	FEATURE_NODE_ENCRYPTION = 32 /* also between other nodes' pods and this node itself, and its pods and other nodes */
};

/* Whose an address is. */
enum encryption_flags {
	ENCRYPTION_OWN_PODS = 1,
	ENCRYPTION_PEER_PODS = 2,    /* another node's, or of a block that may become one's */
	ENCRYPTION_OWN_NODE = 4,
	ENCRYPTION_PEER_NODE = 8,
	ENCRYPTION_READY = 16        /* the WireGuard device takes packets for it */
};

/* ---- values -------------------------------------------------------------------------- */

struct address { __u8 bytes[16]; };

/* A local pod. The same value stands under its interface (as a source) and under each of its
 * addresses (as a destination), so that one write changes subject and class together. */
struct endpoint {
	__u64 subject;              /* whose rows judge it */
	__u64 class_v4;             /* what others' rows see in its IPv4 address */
	__u64 class_v6;
	struct address ipv4;        /* zero: it has none */
	struct address ipv6;
	__u32 identity;
	__u32 ifindex;              /* host side of its veth */
	__u8 mac[6];                /* pod side of its veth */
	__u8 host_mac[6];           /* host side of its veth */
	__u32 id;                   /* the endpoint's number, for people */
	__u32 flags;
	__u32 pad;
};

struct ipcache_key { __u32 prefixlen; struct address address; };
struct ipcache_value { __u64 remote_class; __u32 identity; __u32 pad; };

/* By the longest block that covers an address; keys as those of ipcache. */
struct encryption_value { __u32 flags; };

struct policy_class_key { __u64 subject; __u64 remote_class; __u32 direction; __u32 pad; };
struct policy_class_value { __u64 row; };

struct policy_row_key {
	__u32 prefixlen;
	__u32 row_high_be;          /* the row id, most significant half first, big-endian: */
	__u32 row_low_be;           /* an LPM key is compared from its first byte on */
	__u8 protocol;
	__u8 zero;
	__u16 port_be;              /* ICMP: the type of the flow's first packet */
};
struct policy_row_value {
	__u64 rule;
	__u64 listener;             /* of a REDIRECT: what the proxy is asked, by content */
	__u8 verdict;
	__u8 pad[7];
};

/* Where a proxy listens on loopback, both families, for what these demands judge. Written once it has said that it does;
 * without an entry nothing passes. TCP: Envoy or the DNS proxy; UDP: the DNS proxy. */
struct listener_value { __u16 tcp_port_be; __u16 udp_port_be; __u32 pad; };

struct tuple {
	struct address source;
	struct address destination;
	__u16 source_port_be;       /* ICMP echo request: its id; reply: 0 */
	__u16 destination_port_be;  /* ICMP echo request: 0; reply: its id */
	__u8 protocol;
	__u8 leg;                   /* 1: what a proxy sends on in the originator's name; 0: all else */
	__u8 pad[2];
};

/* A flow has two entries: under the tuple its originator sends (before translation), and
 * under the tuple its answers carry (before they are translated back). Either is enough for
 * a packet of its direction; expiry is the later of the two. The key of each is `after` of the other, turned round. */
struct conntrack {
	__u64 expires_ns;           /* CLOCK_MONOTONIC, coarse */
	__u64 created_ns;
	__u64 epoch;                /* the epoch at which it was judged; another means: judge again */
	__u64 packets;              /* of this entry's direction */
	__u64 bytes;
	__u64 rule_egress;          /* who allowed it, RULE_NONE where that side is not judged here */
	__u64 rule_ingress;
	__u64 listener;             /* to whose proxy it goes, by content; 0: it goes by none */
	struct tuple after;         /* what its packets become (the key itself, where nothing is translated) */
	__u32 source_identity;      /* of the originator */
	__u32 destination_identity;
	__u32 ifindex;              /* the originator's or, from outside, the destination's */
	__u32 sender_ifindex;       /* of this entry's packets: the pod's that may send them; 0: they come by the stack */
	__u32 receiver_ifindex;     /* the local pod's they go to; 0: to the stack */
	__u32 acknowledged;         /* TCP: the last acknowledgement number in this entry's direction */
	__u8 mac[6];                /* of the receiver, as in struct endpoint */
	__u8 host_mac[6];
	__u16 flags;
	__u8 verdict;               /* of the last judgement */
	__u8 icmp_type;             /* of the flow's first packet */
};

struct fragment_key { struct address source; struct address destination; __u32 id; __u8 protocol; __u8 pad[3]; };
struct fragment_value { __u16 source_port_be; __u16 destination_port_be; };

struct service_key { struct address address; __u16 port_be; __u8 protocol; __u8 pad; };

/* A frontend. Clients inside the cluster (pods, the node itself) and outside have a pool each, for traffic policies tell
 * them apart. A count of 0: refuse, or drop where the flag says so. */
struct service_value {
	__u64 pool_inside;
	__u64 pool_outside;
	__u64 ranges;               /* who may use it (source_ranges); 0: anybody */
	__u64 affinity;             /* the number of the service port whose clients keep their backend; 0: they do not */
	__u32 count_inside;
	__u32 count_outside;
	__u32 affinity_timeout_s;
	__u32 flags;
};

struct backend_key { __u64 pool; __u32 slot; __u32 pad; };
struct backend_value { struct address address; __u16 port_be; __u16 pad[3]; };

/* Whether a backend is in a pool; written only for pools of services with affinity. The value is its slot. */
struct member_key { __u64 pool; struct address address; __u16 port_be; __u16 pad[3]; };

struct affinity_key { __u64 affinity; struct address client; };
struct affinity_value { __u64 used_ns; struct address address; __u16 port_be; __u16 pad[3]; };

struct range_key {
	__u32 prefixlen;            /* RANGES_BITS + those of the block */
	__u32 ranges_high_be;       /* as in policy_row_key */
	__u32 ranges_low_be;
	struct address address;
};

/* What a device of the node translates. Two entries as in conntrack: the key of each is `after` of the other turned
 * round. NAT_DSR: at the backend's node there is the reply alone; at the other no answer comes by, and the reply
 * keeps other flows from being answered under its tuple. */
struct nat {
	__u64 expires_ns;
	__u64 created_ns;
	__u64 packets;
	__u64 bytes;
	struct tuple after;
	__u32 ifindex;              /* the device by which the flow came; of NAT_MASQUERADE: by which it leaves */
	__u16 flags;
	__u16 pad;
	__u32 acknowledged;         /* as in conntrack */
	__u32 pad_2;
};

/* A device of the node, by ifindex. An address of zero: it has none of that family. */
struct device {
	struct address ipv4;        /* the source of what is translated on its way out */
	struct address ipv6;
	__u8 mac[6];
	__u16 mtu;
};

/* Sockets whose connections were translated. `address` and `port_be` of the key: the peer the socket has in truth, or
 * believes it has; of the value: the other. Keys without an address: see socket_memory.h. */
struct socket_key { __u64 cookie; struct address address; __u16 port_be; __u8 protocol; __u8 pad[5]; };
struct socket_value { struct address address; __u16 port_be; __u16 pad[3]; };

/* A pod's network namespace, by its cookie. */
struct netns { struct address ipv4; struct address ipv6; __u32 ifindex; __u32 pad; };

struct config {
	__u64 timeout_tcp_ns;       /* established */
	__u64 timeout_syn_ns;       /* not yet answered */
	__u64 timeout_close_ns;
	__u64 timeout_udp_ns;       /* answered UDP and SCTP */
	__u64 timeout_other_ns;     /* unanswered UDP and SCTP, ICMP */
	__u64 hash_seed;            /* the same on every node, so that all choose the same backend from a Maglev table */
	__u64 host_netns;           /* cookie of the node's network namespace; 0: not known */
	struct address ipv4;        /* the node's first address of each family */
	struct address ipv6;
	__u32 features;
	__u16 port_min;             /* source ports the datapath gives out, both included */
	__u16 port_max;
	__u32 wireguard_ifindex;    /* 0: nothing can be encrypted */
	__u32 decrypted_ifindex;    /* the device of the node by which decrypted packets go on as if they had come by it */
	__u16 tunnel_port;          /* of VXLAN between nodes; 0: there is none */
	__u8 pad[6];
};

/* An event is about one packet; addresses are those after service translation, in the
 * direction of the originator for NEW and END, of the packet for DROP. */
struct event {
	__u64 time_ns;              /* CLOCK_MONOTONIC */
	__u64 rule_egress;          /* who decided, RULE_NONE where that side was not judged */
	__u64 rule_ingress;
	__u64 packets;              /* END: of both directions */
	__u64 bytes;
	struct address source;
	struct address destination;
	struct address service;     /* the frontend, zero if none */
	__u32 source_identity;
	__u32 destination_identity;
	__u32 ifindex;
	__u16 source_port_be;
	__u16 destination_port_be;
	__u16 service_port_be;
	__u8 type;
	__u8 verdict;
	__u8 reason;
	__u8 protocol;
	__u8 hook;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 egress_judged;         /* the source is a local pod: its egress rules were asked */
	__u8 ingress_judged;
	__u8 refused;               /* DROP: the sender was told, for a reason for which he is not always */
	__u8 encrypted;             /* between nodes */
	__u8 pad[2];
};

/* What the datapath knows of the packet in hand (packet.h); user space has no use for it. */
struct scratch { __u8 bytes[1024]; };

/* ---- maps: M(type, name, key, value, max_entries, flags) -----------------------------
 * Types and flags are the kernel's (BPF_MAP_TYPE_…, BPF_F_…). Sizes are defaults. */

#define GH_MAPS(M) \
	M(HASH,         interfaces,     __u32,                   struct endpoint,           8192,    0) \
	M(HASH,         endpoints,      struct address,          struct endpoint,           16384,   0) \
	M(LPM_TRIE,     ipcache,        struct ipcache_key,      struct ipcache_value,      524288,  NO_PREALLOC) \
	M(HASH,         policy_class,   struct policy_class_key, struct policy_class_value, 1048576, NO_PREALLOC) \
	M(LPM_TRIE,     policy_row,     struct policy_row_key,   struct policy_row_value,   1048576, NO_PREALLOC) \
	M(HASH,         listeners,      __u64,                   struct listener_value,     16384,   NO_PREALLOC) \
	M(HASH,         conntrack,      struct tuple,            struct conntrack,          524288,  NO_PREALLOC) \
	M(LRU_HASH,     conntrack_host, struct tuple,            struct conntrack,          65536,   0) \
	M(LRU_HASH,     fragments,      struct fragment_key,     struct fragment_value,     8192,    0) \
	M(HASH,         services,       struct service_key,      struct service_value,      262144,  NO_PREALLOC) \
	M(HASH,         backends,       struct backend_key,      struct backend_value,      1048576, NO_PREALLOC) \
	M(HASH,         members,        struct member_key,       __u32,                     1048576, NO_PREALLOC) \
	M(HASH_OF_MAPS, maglev,         __u64,                   __u32,                     4096,    0) \
	M(HASH,         affinity,       struct affinity_key,     struct affinity_value,     131072,  NO_PREALLOC) \
	M(LPM_TRIE,     source_ranges,  struct range_key,        __u32,                     65536,   NO_PREALLOC) \
	M(HASH,         nat,            struct tuple,            struct nat,                524288,  NO_PREALLOC) \
	M(HASH,         devices,        __u32,                   struct device,             64,      0) \
	M(LPM_TRIE,     unmasqueraded,  struct ipcache_key,      __u32,                     4096,    NO_PREALLOC) \
	M(LPM_TRIE,     encryption,     struct ipcache_key,      struct encryption_value,   65536,   NO_PREALLOC) \
	M(LRU_HASH,     socket_frontends, struct socket_key,     struct socket_value,       131072,  0) \
	M(LRU_HASH,     socket_backends, struct socket_key,      struct socket_value,       131072,  0) \
	M(HASH,         namespaces,     __u64,                   struct netns,              8192,    0) \
	M(ARRAY,        config,         __u32,                   struct config,             1,       0) \
	M(ARRAY,        epoch,          __u32,                   __u64,                     1,       0) \
	M(PERCPU_ARRAY, drops,          __u32,                   __u64,                     DROP_REASONS, 0) \
	M(PERCPU_ARRAY, scratch,        __u32,                   struct scratch,            1,       0) \
	M(PERCPU_ARRAY, tallies,        __u32,                   __u64,                     TALLIES, 0) \
	M(RINGBUF,      events,         void,                    void,                      4194304, 0)

#endif
