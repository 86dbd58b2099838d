"""Published figures of others that benchmarks print as `anchors`, each with the place where it was read.

They were taken on other machines, for other work: nothing makes a ratio with them, and `not comparable` says why.
"""

from __future__ import annotations

STARTS: list[dict[str, str]] = [
    {
        "what": "OpenFaaS on armhf: first call / call after it, ms",
        "figure": "2585 / 289",
        "source": "'FaaS function run time performance test 1: cold start time', section 7.3.1, figures 7.2 and 7.3, "
        "www.mo4tech.com; a translated chapter, whose book, author and year it does not name",
        "not comparable": "a whole HTTP request to a Go function that computes bcrypt, limited to 100 MHz and 50 MB; "
        "ours is to the first training step on a processor of this machine",
    },
    {
        "what": "tinyFaaS against other FaaS platforms at the edge",
        "figure": "'at least an order of magnitude' better for IoT processing; no start-up time is in the abstract",
        "source": "Pfandzelter, Bermbach: tinyFaaS: A Lightweight FaaS Platform for Edge Environments, IEEE ICFC 2020, "
        "doi 10.1109/ICFC49376.2020.00011, abstract (its tables were not at hand)",
        "not comparable": "latency of requests to containers that already run: it starts none for a call",
    },
    {
        "what": "OpenWhisk, OpenFaaS and Greengrass on Raspberry Pis",
        "figure": "OpenFaaS answers fastest of the three; the numbers are in its figures only",
        "source": "Javed, Toosi, Aslanpour: Serverless Platforms on the Edge: A Performance Analysis, 2021, "
        "arXiv 2111.06563, abstract (its figures were not at hand)",
        "not comparable": "response times under load on a cluster, with its scheduler and network",
    },
    {
        "what": "faasd",
        "figure": "none found: its own documents give a minimum machine, no start-up time",
        "source": "searched for, not found",
        "not comparable": "-",
    },
    {
        "what": "TensorFlow / torch in a fresh process, to the first training step, ms",
        "figure": "2300-3300 / 2200",
        "source": "issue 4 of this project, which measured them on two cores; not measured here",
        "not comparable": "another run on another machine",
    },
]
