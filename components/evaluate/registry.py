"""All metrics by name: every file in ``metrics/`` is one, and its name is the metric's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from components.evaluate import metrics
from components.evaluate.metric import Metric

METRICS: Mapping[str, Metric[Any]] = {
    module.name: importlib.import_module(f"{metrics.__name__}.{module.name}").METRIC
    for module in sorted(pkgutil.iter_modules(metrics.__path__), key=lambda module: module.name)
}

if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]  # so that settings list the choices and reject anything else
