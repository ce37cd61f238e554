"""A Kubernetes JobSet for kubectl, with an index for each job; no index ends another.

Jobs of one host are the indexes of one Job. The hosts of a job that spans several fail together, so
it becomes a JobSet of its own: within one JobSet the failure of a Job ends or restarts the others.

The words of the indexes are too long for one argument of a process when there are many jobs. So
they lie in ConfigMaps, which a pod sees as files. The name of a ConfigMap holds the hash of its
jobs: a JobSet never takes the jobs of an earlier file of the same name.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dfm_jax.checks import check_count, require
from dfm_jax.launch.jobs import LONGEST_ARGUMENT, Job, check_job_lines, check_word
from dfm_jax.training.stopping import ExitStatus

_API = "jobset.x-k8s.io/v1alpha2"
_PART, _CONTAINER, _PORT = "jobs", "main", 55527
_LONGEST = 63  # characters of a DNS label, which the name of a pod is
_DRAWN = "-abcde"  # stands for the five characters that Kubernetes draws for a pod
_LABEL = r"[A-Za-z0-9]([\w.-]{,61}[A-Za-z0-9])?"  # the value of a label
_QUANTITY = r"(\d+\.?\d*|\.\d+)([eE]\d+|[numkMGTPE]|[KMGTPE]i)?"  # of cores or bytes
_OBJECT = r"[a-z0-9]([a-z0-9.-]{,251}[a-z0-9])?"  # the name of an object
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")  # a word that need not be quoted
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # not strings, to some
_FINAL = [int(ExitStatus.BAD_INPUT), int(ExitStatus.NON_FINITE)]
_FILES = "/etc/dfm_jax_jobs"  # the folder of the jobs in a pod
_LARGEST = 2**31 - 1  # of a count
_MOST_INDEXES = 100_000  # of a Job with retries for each index
# kubectl keeps an object a second time in its annotations, which may have 262,144 bytes.
_MOST_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Pods:
    """The contents and requests of a pod; None leaves a request out."""

    image: str  # with this package installed
    name: str = "dfm-jax"  # of the JobSet
    at_once: int | None = None  # jobs that run at one time, at most
    retries: int = 10  # of an index; a pod that was evicted does not count
    hosts: int = 1  # of each job
    grace: int = 120  # seconds that a pod has to save
    claim: str | None = None  # a PersistentVolumeClaim with the data, and for the run
    mount: str = "/data"  # where it is in the pod
    cpus: str | None = None
    memory: str | None = None
    gpus: int | None = None  # nvidia.com/gpu, of each host
    tpus: int | None = None  # google.com/tpu, of each host
    accelerator: str | None = None  # of GKE: tpu-v5-lite-podslice
    topology: str | None = None  # of GKE: 2x4
    python: str = "python"

    def __post_init__(self) -> None:
        """Refuse what the API of Kubernetes would refuse, before anything is written."""
        for name in ("at_once", "hosts", "grace", "gpus", "tpus"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), at_most=_LARGEST)
        check_count("retries", self.retries, at_least=0, at_most=_LARGEST)
        short = re.fullmatch(r"[a-z]([a-z0-9-]{,38}[a-z0-9])?", self.name) is not None
        # At most 40, because the names of pods are longer.
        rule = "`name` must have at most 40 characters, all of them small letters, digits or dashes"
        require(short, rule, self.name)
        inside = re.fullmatch("/+[^/:][^:]*", self.mount) is not None
        rule = "`mount` must be an absolute path in the pod, without a colon"
        require(inside, rule, self.mount)
        rule = f"`mount` must not be {_FILES}, where a pod finds its jobs"
        require(self.mount.rstrip("/") != _FILES, rule, self.mount)
        for name in ("image", "mount", "python"):
            check_word(name, getattr(self, name))
        forms = {"claim": _OBJECT, "accelerator": _LABEL, "topology": _LABEL, "image": r"\S+"}
        for name, form in (forms | {"cpus": _QUANTITY, "memory": _QUANTITY}).items():
            value = getattr(self, name)
            fits = value is None or re.fullmatch(form, value, flags=re.ASCII) is not None
            kind = "an amount" if form == _QUANTITY else "a name"
            require(fits, f"`{name}` must be {kind} that Kubernetes accepts", value)
        both = (self.accelerator is None) == (self.topology is None)
        rule = "`accelerator` and `topology` must be given together"
        given = (self.accelerator, self.topology)
        require(both, rule, given, name="(accelerator, topology)")


def jobset_text(jobs: Sequence[Job], pods: Pods) -> str:
    """The YAML of the ConfigMaps of the jobs and of their JobSet.

    If the jobs span hosts, it is that of one JobSet for each job, without a ConfigMap.

    Raises:
        ValueError: if there is no job, or more than Kubernetes counts; if a word would reach its
            command changed or is too long; if a name is too long, or has characters that Kubernetes
            does not accept.
    """
    require(bool(jobs), "`jobs` must hold a job", list(jobs))
    rule = f"`jobs` must hold at most {_MOST_INDEXES:,} jobs, the indexes of a Job of Kubernetes"
    require(pods.hosts > 1 or len(jobs) <= _MOST_INDEXES, rule, len(jobs), name="len(jobs)")
    check_job_lines(jobs)
    inside = [] if pods.hosts == 1 else [word for job in jobs for word in job.arguments]
    for word in (pods.python, *inside):
        rule = "`arguments` must not hold $$ or $(, which Kubernetes replaces in a command"
        require("$$" not in word and "$(" not in word, rule, word)
    if pods.hosts > 1:
        return "---\n".join(yaml_text(_spanning(job, pods)) for job in jobs)
    maps = _config_maps(jobs, pods)
    names = [made["metadata"]["name"] for made in maps]
    return "---\n".join(yaml_text(made) for made in (*maps, _independent(len(jobs), names, pods)))


def _config_maps(jobs: Sequence[Job], pods: Pods) -> list[dict[str, Any]]:
    """ConfigMaps whose files set the words of the index of the pod, if it is one of theirs."""
    cases = [f"  {i}) set -- {shlex.join(job.arguments)} ;;\n" for i, job in enumerate(jobs)]
    files, room = list[list[str]](), 0
    for case in cases:
        # Bytes in the annotation, which is JSON; Go writes <, > and & as six characters each.
        size = len(json.dumps(case)) + 5 * sum(map(case.count, "<>&"))
        rule = f"`arguments` must have at most {_MOST_BYTES} bytes in all"
        require(size <= _MOST_BYTES, rule, size, name="a job of so many bytes")
        if size > room:
            files.append([])
            room = _MOST_BYTES
        files[-1].append(case)
        room -= size
    digest = hashlib.sha256("".join(cases).encode()).hexdigest()[:8]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{pods.name}-jobs-{digest}-{place}"},
            "immutable": True,
            "data": {f"jobs_{place}.sh": f'case "$JOB_COMPLETION_INDEX" in\n{"".join(file)}esac\n'},
        }
        for place, file in enumerate(files)
    ]


def _independent(count: int, names: Sequence[str], pods: Pods) -> dict[str, Any]:
    """The JobSet of so many indexes, whose jobs lie in the ConfigMaps of these names."""
    script = (
        f'set --\nfor file in {_FILES}/*.sh; do . "$file"; done\n'
        'if [ "$#" = 0 ]; then\n'
        '  echo "no job has the number $JOB_COMPLETION_INDEX" >&2; exit 2\nfi\n'
        f'exec {shlex.quote(pods.python)} -m dfm_jax "$@"\n'  # exec: SIGTERM must reach python
    )
    pod = _pod(script, pods, [])
    mount = {"name": "jobs", "mountPath": _FILES, "readOnly": True}
    sources = [{"configMap": {"name": name}} for name in names]
    pod["containers"][0].setdefault("volumeMounts", []).append(mount)
    pod.setdefault("volumes", []).append({"name": "jobs", "projected": {"sources": sources}})
    job = {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(pods.at_once or count, count),
        "backoffLimitPerIndex": pods.retries,
        "podReplacementPolicy": "Failed",  # not before the old pod is gone: it holds the lock
        "podFailurePolicy": {"rules": _rules("FailIndex")},
        "template": {"spec": pod},
    }
    return _jobset(pods.name, {}, job)


def _spanning(job: Job, pods: Pods) -> dict[str, Any]:
    name = f"{pods.name}-{job.name.replace('_', '-')}"
    env = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{_PART}-0-0.{name}:{_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(pods.hosts)},
        {
            "name": "JAX_PROCESS_ID",
            "valueFrom": {
                "fieldRef": {
                    "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
                }
            },
        },
    ]
    script = f"exec {shlex.quote(pods.python)} -m dfm_jax {shlex.join(job.arguments)}\n"
    spec = {
        "completionMode": "Indexed",
        "completions": pods.hosts,
        "parallelism": pods.hosts,
        "backoffLimit": 0,  # one host lost is all lost: the JobSet begins them again together
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules("FailJob")},
        "template": {"spec": _pod(script, pods, env)},
    }
    final = {
        "name": "final_status",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    policy = {"failurePolicy": {"maxRestarts": pods.retries, "rules": [final]}}
    made = _jobset(name, policy, spec)
    if pods.accelerator is not None:  # not half of an expert in one slice, half in another
        made["metadata"]["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    return made


def _jobset(name: str, policy: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    plain = re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) is not None
    rule = "The name of a JobSet must consist of small letters, digits and dashes"
    require(plain, rule, name, name="name")
    pod = f"{name}-{_PART}-0-{job['completions'] - 1}{_DRAWN}"
    rule = f"The name of a pod must have at most {_LONGEST} characters"
    then = "Give a shorter `name`."
    require(len(pod) <= _LONGEST, rule, pod, name=f"a name of {len(pod)} characters", then=then)
    part = {"name": _PART, "replicas": 1, "template": {"spec": job}}
    spec = {"network": {"enableDNSHostnames": True}, **policy, "replicatedJobs": [part]}
    return {"apiVersion": _API, "kind": "JobSet", "metadata": {"name": name}, "spec": spec}


def _rules(final: str) -> list[dict[str, Any]]:
    codes = {"containerName": _CONTAINER, "operator": "In", "values": _FINAL}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    return [
        {"action": final, "onExitCodes": codes},
        {"action": "Ignore", "onPodConditions": [evicted]},
    ]


def _pod(script: str, pods: Pods, env: list[dict[str, Any]]) -> dict[str, Any]:
    rule = f"`arguments` must have less than {LONGEST_ARGUMENT} bytes as one argument of a shell"
    size = len(script.encode())
    require(size < LONGEST_ARGUMENT, rule, size, name="a script of so many bytes")
    asked = {
        "cpu": pods.cpus,
        "memory": pods.memory,
        "nvidia.com/gpu": pods.gpus,
        "google.com/tpu": pods.tpus,
    }
    limits = {name: value for name, value in asked.items() if value is not None}
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": pods.image,
        "command": ["sh", "-c", script],
    }
    container |= {"env": env} if env else {}
    container |= {"resources": {"requests": limits, "limits": limits}} if limits else {}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace,
    }
    if pods.accelerator is not None:
        spec["nodeSelector"] = {
            "cloud.google.com/gke-tpu-accelerator": pods.accelerator,
            "cloud.google.com/gke-tpu-topology": pods.topology,
        }
    if pods.claim is not None:
        container["volumeMounts"] = [{"name": "data", "mountPath": pods.mount}]
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": pods.claim}}
        return spec | {"containers": [container], "volumes": [volume]}
    return spec | {"containers": [container]}


class _Block(yaml.SafeDumper):
    """YAML in block style, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice two times."""
        return True


def _represent_text(dumper: _Block, text: str) -> yaml.ScalarNode:
    """Write printable lines as they are, and other text in quotes, which YAML readers agree on."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    lines = "\n" in text and all(line.isprintable() for line in text.split("\n"))
    style = None if plain else "|" if lines else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Block.add_representer(str, _represent_text)


def yaml_text(value: Any) -> str:
    """The lines of a mapping or a list that contains numbers, strings and booleans."""
    return yaml.dump(value, Dumper=_Block, sort_keys=False, allow_unicode=True, width=math.inf)
