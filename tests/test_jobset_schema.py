"""The objects for Kubernetes by the published schemas: fields that must be, may be, and no other.

The table was read from the custom resource of JobSet, v0.6.0 to v0.12.0 (kubernetes-sigs/jobset,
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml, and for the names of rules and the reasons
pkg/webhooks/jobset_webhook.go), and from Kubernetes 1.29 to 1.37 (kubernetes/kubernetes,
api/openapi-spec/v3, apis__batch__v1_openapi.json and api__v1_openapi.json). Of each object it has
the fields that we write. Where versions differ, it has the strictest.
"""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dfm_jax.launch import Pods, jobset_text, train_jobs


def fields(required: str = "", **properties) -> dict:
    """An object with these fields and no other, of which some are required."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(schema: dict, least: int = 1) -> dict:
    return {"type": "array", "items": schema, "minItems": least}


def named(pattern: str, longest: int = 63) -> dict:
    return {"type": "string", "pattern": f"^(?:{pattern})$", "maxLength": longest}


TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
LABEL = named("[a-z0-9]([a-z0-9-]*[a-z0-9])?")
OBJECT = named("[a-z0-9]([a-z0-9.-]*[a-z0-9])?", 253)
QUANTITY = {"anyOf": [WHOLE, named(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|m|k|[MGTPE]i?|Ki)?")]}
TEXTS = {"type": "object", "additionalProperties": TEXT}

ENV = fields(
    "name",
    name=named("[A-Za-z_][A-Za-z0-9_]*"),
    value=TEXT,
    valueFrom=fields(fieldRef=fields("fieldPath", fieldPath=TEXT, apiVersion=TEXT)),
)
CONTAINER = fields(
    "name image",
    name=LABEL,
    image=TEXT,
    command=items(TEXT),
    env=items(ENV),
    resources=fields(
        requests={"type": "object", "additionalProperties": QUANTITY},
        limits={"type": "object", "additionalProperties": QUANTITY},
    ),
    volumeMounts=items(
        fields(
            "name mountPath",
            name=LABEL,
            mountPath=named("/[^:]*", 4096),
            readOnly={"type": "boolean"},
        )
    ),
)
SOURCE = fields(configMap=fields("name", name=OBJECT, optional={"type": "boolean"}))
VOLUME = fields(
    "name",
    name=LABEL,
    persistentVolumeClaim=fields("claimName", claimName=OBJECT, readOnly={"type": "boolean"}),
    projected=fields("sources", sources=items(SOURCE)),
)
POD = fields(
    "containers",
    restartPolicy={"const": "Never"},  # with a podFailurePolicy
    terminationGracePeriodSeconds=WHOLE,
    nodeSelector=TEXTS,
    containers=items(CONTAINER),
    volumes=items(VOLUME),
)
FAILURE_RULE = fields(
    "action",
    action={"enum": ["Count", "FailIndex", "FailJob", "Ignore"]},
    onExitCodes=fields(
        "operator values",
        containerName=LABEL,
        operator={"enum": ["In", "NotIn"]},
        values={"type": "array", "items": {**WHOLE, "minimum": 1}, "minItems": 1, "maxItems": 255},
    ),
    onPodConditions=items(
        fields("type status", type=TEXT, status={"enum": ["True", "False", "Unknown"]})
    ),
) | {"oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}]}
JOB = fields(
    "template",
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    completions=WHOLE,
    parallelism={**WHOLE, "maximum": 100_000},
    backoffLimit=WHOLE,
    backoffLimitPerIndex=WHOLE,
    podReplacementPolicy={"const": "Failed"},  # with a podFailurePolicy
    podFailurePolicy=fields("rules", rules=items(FAILURE_RULE) | {"maxItems": 20}),
    template=fields(metadata={"type": "object"}, spec=POD),
)
REASONS = "BackoffLimitExceeded DeadlineExceeded FailedIndexes MaxFailedIndexesExceeded"
JOBSET_RULE = fields(
    "name action",
    name=named("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", 128),
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=items({"enum": [*REASONS.split(), "PodFailurePolicy"]}),
    targetReplicatedJobs=items(TEXT),
)
PART = fields(
    "name template",
    name=LABEL,
    replicas=WHOLE,
    template=fields("spec", metadata={"type": "object"}, spec=JOB),
)
METADATA = fields("name", name=OBJECT, annotations=TEXTS, labels=TEXTS)
SCHEMAS = {
    "JobSet": fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
        kind=TEXT,
        metadata=METADATA,
        spec=fields(
            "replicatedJobs",
            network=fields(enableDNSHostnames={"type": "boolean"}),
            failurePolicy=fields(maxRestarts=WHOLE, rules=items(JOBSET_RULE)),
            replicatedJobs=items(PART),
        ),
    ),
    "ConfigMap": fields(
        "apiVersion kind metadata",
        apiVersion={"const": "v1"},
        kind=TEXT,
        metadata=METADATA,
        immutable={"type": "boolean"},
        data={
            "type": "object",
            "propertyNames": named("[-._a-zA-Z0-9]+", 253),
            "additionalProperties": TEXT,
        },
    ),
}
TPU = {"tpus": 4, "accelerator": "tpu-v5-lite-podslice", "topology": "2x4"}
PODS = {
    "least": Pods(image="i"),
    "all": Pods(
        **{"image": "here/it:1", "name": "x-y", "at_once": 2, "retries": 0, "grace": 30},
        **{"claim": "c", "mount": "/m", "cpus": "500m", "memory": "8Gi", "gpus": 2},
    ),
    "tpu": Pods(image="i", claim="c", **TPU),
    "hosts": Pods(image="i", claim="c", hosts=2, retries=5, **TPU),
}


def objects(pods: Pods, count: int = 3) -> list:
    words = ["--config", "small", "--set", "a=<b>"]
    jobs = train_jobs(Path("/data/d"), Path("/data/r"), words, experts=range(count), dense=True)
    return list(yaml.safe_load_all(jobset_text(jobs, pods)))


def check(found: list) -> None:
    """By the table; and what a file names is in the file: its ConfigMaps, and its volumes."""
    maps = [made["metadata"]["name"] for made in found if made["kind"] == "ConfigMap"]
    assert len(set(maps)) == len(maps)
    named_maps = []
    for made in found:
        jsonschema.validate(made, SCHEMAS[made["kind"]])
        for part in made.get("spec", {}).get("replicatedJobs", ()):
            spec = part["template"]["spec"]["template"]["spec"]
            mounts = spec["containers"][0].get("volumeMounts", [])
            volumes = spec.get("volumes", [])
            assert [one["name"] for one in mounts] == [one["name"] for one in volumes]
            assert len({one["mountPath"] for one in mounts}) == len(mounts)
            for volume in volumes:
                sources = volume.get("projected", {}).get("sources", [])
                named_maps += [source["configMap"]["name"] for source in sources]
    assert named_maps == maps


@pytest.mark.parametrize("name", PODS)
def test_what_is_written_is_valid_by_the_published_schemas(name):
    check(objects(PODS[name]))


def test_several_config_maps_are_valid_too():
    found = objects(PODS["all"], count=2500)
    assert [made["kind"] for made in found] == ["ConfigMap", "ConfigMap", "JobSet"]
    check(found)


def changed(found: list, path: str, value: object) -> list:
    """The last object with another value at a path of words and numbers; None removes it."""
    found = copy.deepcopy(found)
    place, (*steps, last) = found[-1], [int(w) if w.isdecimal() else w for w in path.split(".")]
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return found


SPEC = "spec.replicatedJobs.0.template.spec"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{SPEC}.podFailurePolicy.rules.1.onPodConditions.0.status", None, "'status' is a requir"),
        (f"{SPEC}.podFailurePolicy.rules.0.action", "Fail", "'Fail' is not one of"),
        (f"{SPEC}.podFailurePolicy.rules.0.onPodConditions", [], "is valid under each of"),
        (f"{SPEC}.podReplacementPolicy", "TerminatingOrFailed", "'Failed' was expected"),
        (f"{SPEC}.backofLimit", 1, "Additional properties are not allowed"),
        (f"{SPEC}.completions", "3", "'3' is not of type 'integer'"),
        (f"{SPEC}.template.spec.restartPolicy", "OnFailure", "'Never' was expected"),
        (f"{SPEC}.template.spec.containers.0.image", None, "'image' is a required property"),
        (f"{SPEC}.template.spec.containers.0.resources.limits.cpu", "four", "'four' "),
        ("spec.failurePolicy.rules.0.name", None, "'name' is a required property"),
        ("spec.failurePolicy.rules.0.name", "final-status", "does not match"),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["Policy"], "'Policy' is not one of"),
        ("apiVersion", "jobset.x-k8s.io/v1", "was expected"),
        ("metadata.name", "Dfm_jax", "does not match"),
    ],
)
def test_what_is_not_valid_is_seen(path, value, message):
    found = objects(PODS["hosts"])
    with pytest.raises(jsonschema.ValidationError, match=re.escape(message)):
        check(changed(found, path, value))


def test_a_config_map_that_is_not_in_the_file_is_seen():
    found = objects(PODS["all"])
    with pytest.raises(AssertionError):
        check(found[1:])
