"""Published figures of others that benchmarks print as `anchors`, each with the place where it was read.

They were taken on other machines, for other work: nothing makes a ratio with them, and `not comparable` says why.
Only what was read in the source itself is a figure here; medians "of its data" were computed from the raw data that
the authors published. tinyFaaS' own paper could be read in its abstract only.
"""

from __future__ import annotations

REQUEST = (
    "a whole HTTP request to a function that does next to nothing; ours is to the first step of a training"
)
STARTS: list[dict[str, str]] = [
    {
        "what": "faasd (OpenFaaS without Kubernetes): cold start / resuming a paused function, ms",
        "figure": "390 / 190",
        "source": "OpenFaaS' blog of 2020-04-17, 'Meet faasd - portable Serverless without the complexity of "
        "Kubernetes', section 'How is faasd different from OpenFaaS on Kubernetes?': on a Dell XPS, small image "
        "pulled before, 'without further optimization'",
        "not comparable": REQUEST,
    },
    {
        "what": "faasd: the smallest machine it is offered for",
        "figure": "2 vCPU, 2 GB of RAM",
        "source": "README of the repository openfaas/faasd; OpenFaaS' blog of 2022-06-01, 'The Event-Driven Edge with "
        "OpenFaaS', says 512 MB of RAM in all for gateway, Prometheus and queue worker",
        "not comparable": "a requirement, not a measurement; ours is the resident memory of an agent (bench_idle.py)",
    },
    {
        "what": "OpenFaaS and Knative on Kubernetes: cold start, ms",
        "figure": "1000-2000",
        "source": "OpenFaaS' blog of 2023-03-28, 'Fine-tuning the cold-start in OpenFaaS': one KinD node, image pulled "
        "before, readiness asked every second",
        "not comparable": REQUEST,
    },
    {
        "what": "OpenFaaS on armhf: first call / call after it, ms",
        "figure": "2585 / 289",
        "source": "'FaaS function run time performance test 1: cold start time', section 7.3.1, figures 7.2 and 7.3, "
        "www.mo4tech.com; a translated chapter, whose book, author and year it does not name",
        "not comparable": "a whole HTTP request to a Go function that computes bcrypt, limited to 100 MHz and 50 MB; "
        "ours is to the first training step on a processor of this machine",
    },
    {
        "what": "sandboxes for FaaS at the edge, by tinyFaaS' authors: a cold request, ms (Go / Node.js)",
        "figure": "Docker 362 / 381, gVisor 654 / 750, Firecracker with Linux 392 / 483, with Nanos 110 / 231, "
        "with OSv 110 / 289",
        "source": "Moebius, Pfandzelter, Bermbach: Are Unikernels Ready for Serverless on the Edge?, 2024, "
        "arXiv 2403.00515; medians of 100 in its data, "
        "experiments/cold_start/cold-start.csv of OpenFogStack/unikernel-edge-faas",
        "not comparable": REQUEST,
    },
    {
        "what": "the same: memory that 100 idle instances take, MB (Go / Node.js)",
        "figure": "Docker 441 / 1583, gVisor 2493 / 3810, Firecracker with Linux 6040 / 9525",
        "source": "experiments/idle_mem/memory.csv of the same repository",
        "not comparable": "no model and no training runtime in them; ours keeps none unless [warm] says so",
    },
    {
        "what": "Enoki, made from tinyFaaS: a warm request to a function at the edge / in the cloud, median, ms",
        "figure": "21 / 218",
        "source": "Pfandzelter, Bermbach: Enoki, MiddleWEdge 2023, arXiv 2309.03584; medians of its data, "
        "results.csv of OpenFogStack/enoki, 8,400 requests each, function 4_movingaverage with state beside it",
        "not comparable": "its containers run already: tinyFaaS starts none for a call; the client is 1 ms away",
    },
    {
        "what": "tinyFaaS against other FaaS platforms at the edge",
        "figure": "'at least an order of magnitude' better for IoT processing; no start-up time is in the abstract",
        "source": "Pfandzelter, Bermbach: tinyFaaS: A Lightweight FaaS Platform for Edge Environments, IEEE ICFC 2020, "
        "doi 10.1109/ICFC49376.2020.00011, abstract (its tables were not at hand)",
        "not comparable": "latency of requests to containers that already run: it starts none for a call",
    },
    {
        "what": "Lean OpenWhisk on a Raspberry Pi 4: from one function to the next, ms (median / slowest of 20)",
        "figure": "36 / 3536 with 5 kB handed over, 39 / 3550 with none",
        "source": "repository razkey23/Serverless-On-Edge (of 'FaaS and Curious', ISC 2021 workshops, "
        "doi 10.1007/978-3-030-90539-2_29), Result-5120.csv and Result-0.csv of its ServerlessBench test case 5",
        "not comparable": "one or two of 20 calls take seconds, as a container's start would; it does not say why",
    },
    {
        "what": "Lean OpenWhisk: latency of an action that sleeps 30 ms, three callers at once, ms",
        "figure": "84 to 97",
        "source": "README of kpavel/lean-openwhisk-performance, sample output; the machine is not named",
        "not comparable": "warm: 100 requests to containers that run",
    },
    {
        "what": "OpenWhisk with WebAssembly instead of Docker: cold starts shorter by / memory smaller by",
        "figure": "up to 99.5 % / more than 5 times; Docker's 'hundreds of milliseconds or more'",
        "source": "Gackstatter, Frangoudis, Dustdar: Pushing Serverless to the Edge with WebAssembly Runtimes, "
        "CCGrid 2022, doi 10.1109/CCGrid54584.2022.00023, abstract",
        "not comparable": "functions compiled to WebAssembly: a TFLite runtime with XNNPACK and numpy is not one",
    },
    {
        "what": "OpenWhisk, OpenFaaS and Greengrass on Raspberry Pis",
        "figure": "OpenFaaS answers fastest of the three; the numbers are in its figures only",
        "source": "Javed, Toosi, Aslanpour: Serverless Platforms on the Edge: A Performance Analysis, 2021, "
        "arXiv 2111.06563, abstract (its figures were not at hand)",
        "not comparable": "response times under load on a cluster, with its scheduler and network",
    },
    {
        "what": "TensorFlow / torch in a fresh process, to the first training step, ms",
        "figure": "2300-3300 / 2200",
        "source": "issue 4 of this project, which measured them on two cores; not measured here",
        "not comparable": "another run on another machine",
    },
]
