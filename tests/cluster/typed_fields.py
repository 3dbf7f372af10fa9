"""Write the fields of a TrainJob as a release of Kubeflow Trainer knows them, for `tests.cluster.kueue`.

    pip download --no-deps kubeflow-trainer-api==2.2.1 && unzip -d /tmp/trainer kubeflow_trainer_api-2.2.1-*.whl
    PYTHONPATH=/tmp/trainer:$PWD python -m tests.cluster.typed_fields > tests/cluster/trainjob_fields.json

The release is the one whose types Kueue is built with (see its go.mod); two cannot be installed side by side.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from importlib import metadata
from typing import Any

from kubeflow_trainer_api.models import TrainerV1alpha1TrainJobSpec
from pydantic import BaseModel

# What Darkroom never renders, and what would make the list long.
UNUSED = {"initializer", "volumes", "containers", "initContainers", "securityContext"}


def fields(of: Any, name: str = "") -> Any:
    """Return the fields of a type: by name, ``[item]`` for a list, ``{"*": value}`` for a mapping, or a word."""
    if name in UNUSED:
        return "unused"
    origin, arguments = typing.get_origin(of), typing.get_args(of)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return fields(next(one for one in arguments if one is not type(None)), name)
    if origin is list:
        return [fields(arguments[0])]
    if origin is dict:
        return {"*": fields(arguments[1])}
    if "Quantity" in str(of):
        return "quantity"
    if isinstance(of, type) and issubclass(of, BaseModel) and "actual_instance" not in of.model_fields:
        return {
            field.alias or key: fields(field.annotation, field.alias or key) for key, field in of.model_fields.items()
        }
    return "scalar"


if __name__ == "__main__":
    known = {
        "kubeflow-trainer-api": metadata.version("kubeflow-trainer-api"),
        "spec": fields(TrainerV1alpha1TrainJobSpec),
    }
    json.dump(known, sys.stdout, sort_keys=True, separators=(",", ": "))
    sys.stdout.write("\n")
