"""NetworkPolicy on real packets: one cluster, and for each corner of the language policies and who gets through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from traffic import Cluster, namespaces, objects, pods

NAMESPACES = namespaces(blue={"team": "blue", "env": "prod"}, green={"team": "green", "env": "test"}, plain={})
PODS = pods("""
blue/web:
  labels: {app: web, tier: front}
  ports:
  - {name: http, containerPort: 8080}
  - {name: dns, containerPort: 5353, protocol: UDP}
  - {name: sig, containerPort: 9899, protocol: SCTP}
blue/api: {labels: {app: api, tier: back}, ports: [{name: http, containerPort: 8081}]}
blue/job: {labels: {app: job, tier: ""}}
green/web: {labels: {app: web, tier: front}, ports: [{name: http, containerPort: 8081}]}
green/api: {labels: {app: api}}
green/agent: {labels: {app: api}, hostNetwork: true}
plain/bare: {}
""")
SERVERS = "TCP/8080 TCP/8081 TCP/9090 UDP/5353 UDP/8080 SCTP/9899"


CASE_FILE = "policy-case.yaml"


@pytest.fixture(scope="module")
def cast(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.written("policy-cast.yaml", *NAMESPACES, *PODS), ExitStack() as stack:
        for pod in PODS:
            if not pod["spec"].get("hostNetwork"):
                cluster.serve(f"{pod['metadata']['namespace']}/{pod['metadata']['name']} {SERVERS}", stack=stack)
        cluster.serve("outside TCP/8080 UDP/5353", "node TCP/8080", stack=stack)
        yield cluster
        cluster.delete(CASE_FILE)


@dataclass(frozen=True)
class Case:
    """`policies`: NAMESPACE/NAME: spec. `<POD v4>` stands for an address."""

    name: str
    policies: str
    rows: str


CASES = [
    Case("no policy, everything passes", "", """
        green/api    blue/web     TCP/8080   answered  not-isolated
        plain/bare   blue/web     UDP/5353   answered  not-isolated
        blue/api     green/web    SCTP/9899  answered  not-isolated
        outside      blue/web     TCP/8080   answered  not-isolated
        blue/web     outside      TCP/8080   answered  not-isolated
        blue/web     node         TCP/8080   answered  not-isolated
        blue/web     green/api    ICMP       answered
        blue/web     green/api    TCP/7      refused   # nobody listens: not a matter of policy
    """),
    Case("an empty rule list is nothing", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: []}
    """, """
        blue/api     blue/web     TCP/8080   dropped
        blue/api     blue/web     UDP/5353   dropped
        blue/api     blue/web     SCTP/9899  dropped
        blue/api     blue/web     ICMP       dropped
        outside      blue/web     TCP/8080   dropped
        blue/web     blue/api     TCP/8080   answered  not-isolated  # the other direction, and answers to it
        blue/web     outside      UDP/5353   answered  not-isolated
        blue/api     green/web    TCP/8080   answered  not-isolated  # the same labels in another namespace
        node         blue/web     TCP/8080   answered  node
        node         blue/web     ICMP       answered
    """),
    Case("a missing rule list is nothing as well, and policyTypes defaults to ingress", """
        blue/p: {podSelector: {}}
    """, """
        blue/api     blue/web     TCP/8080   dropped
        blue/web     green/api    TCP/8080   answered
        green/api    blue/job     TCP/8080   dropped
        node         blue/job     TCP/8080   answered  node
    """),
    Case("policyTypes default to egress as well where there are egress rules", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]
    """, """
        blue/web     blue/api     TCP/8080   answered  NetworkPolicy blue/p egress[0]
        blue/web     blue/job     TCP/8080   dropped
        blue/web     outside      TCP/8080   dropped
        blue/web     node         TCP/8080   dropped
        blue/api     blue/web     TCP/8080   dropped
    """),
    Case("egress: [] without policyTypes isolates ingress alone", """
        blue/p: {podSelector: {matchLabels: {app: web}}, egress: []}
    """, """
        blue/web     blue/job     TCP/8080   answered
        blue/api     blue/web     TCP/8080   dropped
    """),
    Case("a section whose type is not listed is ignored", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          policyTypes: [Egress]
          ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]
    """, """
        blue/api     blue/web     TCP/8080   answered
        blue/web     blue/api     TCP/8080   dropped
        blue/web     outside      UDP/5353   dropped
    """),
    Case("from that is empty or missing is everybody; ports that are empty are all", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: []}]}
        blue/q: {podSelector: {matchLabels: {app: api}}, ingress: [{}]}
        blue/r: {podSelector: {matchLabels: {app: job}}, ingress: [{ports: []}]}
    """, """
        outside      blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        plain/bare   blue/api     SCTP/9899  answered  NetworkPolicy blue/q ingress[0]
        green/api    blue/job     UDP/5353   answered  NetworkPolicy blue/r ingress[0]
        outside      blue/job     ICMP       answered
    """),
    Case("a podSelector is of the policy's own namespace", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}
    """, """
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     UDP/5353   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     SCTP/9899  answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     ICMP       answered
        blue/job     blue/web     TCP/8080   dropped
        green/api    blue/web     TCP/8080   dropped
        green/api    blue/web     ICMP       dropped
        outside      blue/web     TCP/8080   dropped
    """),
    Case("an empty podSelector is every pod of the namespace, and no address outside", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}
    """, """
        blue/job     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/web    blue/web     TCP/8080   dropped
        outside      blue/web     TCP/8080   dropped
    """),
    Case("namespaceSelector: all pods of such namespaces", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{namespaceSelector: {matchLabels: {team: green}}}]}]
    """, """
        green/api    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/web    blue/web     SCTP/9899  answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     TCP/8080   dropped
        plain/bare   blue/web     TCP/8080   dropped
    """),
    Case("an empty namespaceSelector is every namespace, and no address outside", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{namespaceSelector: {}}]}]
          egress: [{to: [{namespaceSelector: {}}]}]
    """, """
        plain/bare   blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        outside      blue/web     TCP/8080   dropped
        blue/web     plain/bare   TCP/8080   answered  NetworkPolicy blue/p egress[0]
        blue/web     outside      TCP/8080   dropped
        blue/web     node         TCP/8080   dropped
    """),
    Case("a namespace by its name, through the label that every namespace has", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: plain}}}]}]
    """, """
        plain/bare   blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/api    blue/web     TCP/8080   dropped
        blue/api     blue/web     TCP/8080   dropped
    """),
    Case("two selectors in one peer must both match, lesson 25", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - {namespaceSelector: {matchLabels: {team: green}}, podSelector: {matchLabels: {app: api}}}
    """, """
        green/api    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/web    blue/web     TCP/8080   dropped   # the namespace alone
        blue/api     blue/web     TCP/8080   dropped   # the pod alone
    """),
    Case("of two peers one is enough, lesson 25", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - namespaceSelector: {matchLabels: {team: green}}
            - podSelector: {matchLabels: {app: api}}
    """, """
        green/api    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/web    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/job     blue/web     TCP/8080   dropped
        plain/bare   blue/web     TCP/8080   dropped
    """),
    Case("In and NotIn; NotIn matches where the key is missing", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - {namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [job, other]}]}}
          - from:
            - namespaceSelector: {}
              podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [api, job]}]}
    """, """
        blue/job     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/web    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[1]
        plain/bare   blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[1]
        blue/api     blue/web     TCP/8080   dropped
        green/api    blue/web     TCP/8080   dropped
    """),
    Case("Exists and DoesNotExist; an empty value is a value", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]}]
        green/p:
          podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}
          ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]
    """, """
        blue/job     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/api    blue/web     TCP/8080   dropped
        plain/bare   green/api    TCP/8080   answered  NetworkPolicy green/p ingress[0]
        blue/web     green/api    TCP/8080   dropped
        blue/api     green/web    TCP/8080   answered  not-isolated  # it has a tier
    """),
    Case("expressions and labels of one selector must all match", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - namespaceSelector:
                matchLabels: {env: test}
                matchExpressions: [{key: team, operator: In, values: [green, red]}]
              podSelector:
                matchLabels: {app: web}
                matchExpressions: [{key: tier, operator: In, values: [front]}, {key: job, operator: DoesNotExist}]
    """, """
        green/web    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        green/api    blue/web     TCP/8080   dropped
    """),
    Case("a selector that matches nothing allows nothing, lesson 9", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]
          egress: [{to: [{namespaceSelector: {matchLabels: {team: nobody}}}]}]
    """, """
        blue/api     blue/web     TCP/8080   dropped
        plain/bare   blue/web     UDP/5353   dropped
        outside      blue/web     TCP/8080   dropped
        blue/web     blue/api     TCP/8080   dropped
        blue/web     outside      TCP/8080   dropped
    """),
    Case("a policy that speaks only of UDP isolates TCP and all else", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP, port: 5353}]}]}
    """, """
        blue/api     blue/web     UDP/5353   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     UDP/8080   dropped
        blue/api     blue/web     TCP/8080   dropped
        blue/api     blue/web     SCTP/9899  dropped
        blue/api     blue/web     ICMP       dropped
    """),
    Case("a protocol that is left out is TCP; a port that is left out is any", """
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}, {protocol: SCTP}]}]}
        blue/q: {podSelector: {matchLabels: {app: api}}, ingress: [{ports: [{}]}]}
    """, """
        blue/job     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/job     blue/web     UDP/8080   dropped
        blue/job     blue/web     TCP/9090   dropped
        blue/job     blue/web     SCTP/9899  answered  NetworkPolicy blue/p ingress[0]
        blue/job     blue/api     TCP/9090   answered  NetworkPolicy blue/q ingress[0]
        blue/job     blue/api     UDP/5353   dropped
        blue/job     blue/api     ICMP       dropped   # rules with ports say nothing of ICMP
    """),
    Case("a numeric port need not be declared; endPort is inclusive", """
        blue/p: {podSelector: {matchLabels: {app: job}}, ingress: [{ports: [{port: 8081, endPort: 9090}]}]}
        blue/q:
          podSelector: {matchLabels: {app: api}}
          policyTypes: [Egress]
          egress: [{ports: [{port: 8000, endPort: 8080}, {protocol: UDP, port: 1, endPort: 65535}]}]
    """, """
        plain/bare   blue/job     TCP/8080   dropped
        plain/bare   blue/job     TCP/8081   answered  NetworkPolicy blue/p ingress[0]
        plain/bare   blue/job     TCP/9090   answered  NetworkPolicy blue/p ingress[0]
        blue/api     green/web    TCP/8080   answered  NetworkPolicy blue/q egress[0]
        blue/api     green/web    TCP/8081   dropped
        blue/api     green/web    UDP/5353   answered  NetworkPolicy blue/q egress[0]
        blue/api     outside      TCP/8080   answered  NetworkPolicy blue/q egress[0]
    """),
    Case("one name, different numbers: a named port is that of the destination pod", """
        blue/p: {podSelector: {}, ingress: [{ports: [{port: http}]}]}
        green/q: {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}
    """, """
        plain/bare   blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        plain/bare   blue/web     TCP/8081   dropped
        plain/bare   blue/api     TCP/8081   answered  NetworkPolicy blue/p ingress[0]
        plain/bare   blue/api     TCP/8080   dropped
        plain/bare   blue/job     TCP/8080   dropped   # it has no port of that name
        green/api    green/web    TCP/8081   answered  NetworkPolicy green/q egress[0]
        green/api    green/web    TCP/8080   dropped
        green/api    blue/web     TCP/8080   answered  NetworkPolicy green/q egress[0]
        green/api    plain/bare   TCP/8080   dropped
        green/api    outside      TCP/8080   dropped   # no pod, so no name
    """),
    Case("a named port is of one protocol", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - ports: [{port: dns, protocol: UDP}, {port: sig, protocol: SCTP}, {port: http, protocol: UDP}, {port: dns}]
    """, """
        green/api    blue/web     UDP/5353   answered  NetworkPolicy blue/p ingress[0]
        green/api    blue/web     SCTP/9899  answered  NetworkPolicy blue/p ingress[0]
        green/api    blue/web     TCP/8080   dropped
        green/api    blue/web     UDP/8080   dropped
    """),
    Case("from and ports of one rule must both match", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - {from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080}]}
          - {from: [{podSelector: {matchLabels: {app: job}}}], ports: [{port: 9090}, {port: 5353, protocol: UDP}]}
    """, """
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     TCP/9090   dropped
        blue/job     blue/web     TCP/9090   answered  NetworkPolicy blue/p ingress[1]
        blue/job     blue/web     UDP/5353   answered  NetworkPolicy blue/p ingress[1]
        blue/job     blue/web     TCP/8080   dropped
    """),
    Case("policies add up", """
        blue/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
        blue/p: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}
        blue/q: {podSelector: {matchLabels: {tier: front}}, ingress: [{ports: [{port: 9090}]}]}
        blue/r: {podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
    """, """
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/r egress[0]
        green/web    blue/web     TCP/9090   answered  NetworkPolicy blue/q ingress[0]
        green/web    blue/web     TCP/8080   dropped
        blue/job     blue/web     TCP/9090   dropped   # allowed to come, not to go
        blue/api     blue/job     TCP/8080   dropped   # allowed to go, not to come
        blue/web     green/web    TCP/8080   dropped
    """),
    Case("answers need no rule", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          policyTypes: [Ingress, Egress]
          ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]
        blue/q:
          podSelector: {matchLabels: {app: api}}
          policyTypes: [Ingress, Egress]
          egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
    """, """
        blue/api     blue/web     TCP/8080   answered  NetworkPolicy blue/q egress[0]
        blue/api     blue/web     UDP/5353   answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     SCTP/9899  answered
        blue/api     blue/web     ICMP       answered
        blue/web     blue/api     TCP/8080   dropped
        blue/web     blue/api     ICMP       dropped
    """),
    Case("a pod always reaches itself", """
        blue/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}
    """, """
        blue/web     blue/web     TCP/8080   answered
        blue/web     blue/web     UDP/5353   answered
        blue/web     blue/web     ICMP       answered
        blue/web     blue/api     TCP/8080   dropped
    """),
    Case("hostNetwork pods are the node: they reach its pods, and are reached as the node is", """
        blue/p: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []}
        green/p:
          podSelector: {matchLabels: {app: web}}
          policyTypes: [Ingress, Egress]
          ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]
          egress: [{to: [{podSelector: {matchLabels: {app: api}}}]}]
        plain/p:
          podSelector: {}
          policyTypes: [Egress]
          egress: [{to: [{ipBlock: {cidr: 192.0.2.1/32}}]}]
    """, """
        green/agent  blue/web     TCP/8080   answered  node
        green/agent  blue/web     ICMP       answered
        green/agent  green/web    UDP/5353   answered  node
        green/web    green/api    TCP/8080   answered  NetworkPolicy green/p egress[0]
        green/web    green/agent  TCP/8080   dropped   # its labels select no address of the node
        plain/bare   node         TCP/8080/v4  answered  NetworkPolicy plain/p egress[0]
        plain/bare   node         TCP/8080/v6  dropped
        blue/web     node         TCP/8080   dropped
    """),
    Case("hostNetwork pods are isolated by no policy", """
        green/p: {podSelector: {}, policyTypes: [Ingress, Egress]}
    """, """
        blue/web     green/agent  TCP/8080   answered  not-isolated
        outside      green/agent  TCP/8080   answered
        green/agent  outside      TCP/8080   answered
        green/agent  green/web    TCP/8080   answered  node
        blue/web     green/web    TCP/8080   dropped
    """),
    Case("ipBlock without the addresses of its except", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.64/26]}
            - ipBlock: {cidr: "2001:db8:100::/48", except: ["2001:db8:100::66/128"]}
          egress:
          - {to: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.66/32]}}], ports: [{port: 8080}]}
    """, """
        198.51.100.10       blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[0]
        198.51.100.10       blue/web  ICMP      answered
        198.51.100.130      blue/web  UDP/5353  answered  NetworkPolicy blue/p ingress[0]
        198.51.100.66       blue/web  TCP/8080  dropped
        198.51.100.66       blue/web  ICMP      dropped
        203.0.113.7         blue/web  TCP/8080  dropped
        2001:db8:100::10    blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[0]
        2001:db8:100::66    blue/web  TCP/8080  dropped
        2001:db8:200::10    blue/web  TCP/8080  dropped
        green/api           blue/web  TCP/8080  dropped
        blue/web  198.51.100.10     TCP/8080    answered  NetworkPolicy blue/p egress[0]
        blue/web  198.51.100.66     TCP/8080    dropped
        blue/web  198.51.100.10     UDP/5353    dropped
        blue/web  2001:db8:100::10  TCP/8080    dropped
    """),
    Case("an except takes from its own block alone", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.0/25]}}]
          - from: [{ipBlock: {cidr: 198.51.100.64/26}}]
            ports: [{port: 8080}]
    """, """
        198.51.100.10   blue/web  TCP/8080  dropped
        198.51.100.66   blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[1]
        198.51.100.66   blue/web  TCP/9090  dropped
        198.51.100.130  blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[0]
        198.51.100.130  blue/web  TCP/9090  answered  NetworkPolicy blue/p ingress[0]
    """),
    Case("overlapping blocks, the widest included; a family says nothing of the other", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - {from: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}}], ports: [{port: 8080}]}
          - {from: [{ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 8081}]}
          - {from: [{ipBlock: {cidr: 198.51.100.10/32}}], ports: [{port: 9090}]}
    """, """
        198.51.100.10     blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[0]
        198.51.100.10     blue/web  TCP/8081  answered  NetworkPolicy blue/p ingress[1]
        198.51.100.10     blue/web  TCP/9090  answered  NetworkPolicy blue/p ingress[2]
        198.51.100.66     blue/web  TCP/8081  answered  NetworkPolicy blue/p ingress[1]
        198.51.100.66     blue/web  TCP/9090  dropped
        203.0.113.7       blue/web  TCP/8080  dropped
        192.0.2.2         blue/web  TCP/8080  answered  NetworkPolicy blue/p ingress[0]
        192.0.2.2         blue/web  TCP/8081  dropped
        2001:db8:100::10  blue/web  TCP/8080  dropped
        blue/api          blue/web  TCP/8080/v4  answered  NetworkPolicy blue/p ingress[0]
        blue/api          blue/web  TCP/8080/v6  dropped
    """),
    Case("ipBlock and except match the addresses of pods", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress:
          - from:
            - ipBlock: {cidr: 10.244.0.0/16, except: ["<blue/api v4>/32"]}
            - ipBlock: {cidr: "<green/api v6>/128"}
          egress:
          - to: [{ipBlock: {cidr: "<green/web v4>/32"}}]
    """, """
        blue/job     blue/web     TCP/8080/v4  answered  NetworkPolicy blue/p ingress[0]
        blue/api     blue/web     TCP/8080/v4  dropped
        blue/api     blue/web     ICMP/v4      dropped
        green/api    blue/web     TCP/8080     answered  NetworkPolicy blue/p ingress[0]
        blue/job     blue/web     TCP/8080/v6  dropped
        outside      blue/web     TCP/8080     dropped
        blue/web     green/web    TCP/8080/v4  answered  NetworkPolicy blue/p egress[0]
        blue/web     green/web    TCP/8080/v6  dropped
        blue/web     green/api    TCP/8080/v4  dropped
    """),
    Case("labels that imitate a namespace or a service account mean nothing, lesson 7", """
        blue/p:
          podSelector: {matchLabels: {app: web}}
          ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: green}}}]}]
        blue/q:
          podSelector: {matchLabels: {app: api}}
          ingress: [{from: [{podSelector: {matchLabels: {io.cilium.k8s.policy.serviceaccount: admin}}}]}]
    """, """
        green/web    blue/web     TCP/8080   answered  NetworkPolicy blue/p ingress[0]
        plain/liar   blue/web     TCP/8080   dropped
        plain/liar   blue/api     TCP/8080   dropped
        blue/admin   blue/api     TCP/8080   answered  NetworkPolicy blue/q ingress[0]  # by its service account
        blue/liar    blue/api     TCP/8080   dropped   # a label of that name is not looked at
        blue/liar    blue/web     TCP/8080   dropped
    """),
]  # fmt: skip
LIARS = pods("""
plain/liar:
  labels:
    kubernetes.io/metadata.name: green
    k8s.io.kubernetes.pod.namespace: green
    io.kubernetes.pod.namespace: green
    io.cilium.k8s.policy.serviceaccount: admin
    team: green
    "reserved.host": ""
blue/liar: {labels: {kubernetes.io/metadata.name: green, io.cilium.k8s.policy.serviceaccount: admin}}
blue/admin: {labels: {role: none}, serviceAccountName: admin}
""")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_policy(cast: Cluster, case: Case) -> None:
    extra = LIARS if "liar" in case.rows else []
    cast.write(CASE_FILE, *objects("NetworkPolicy", cast.fill_in(case.policies)), *extra)
    cast.check(case.rows)
