"""What a step asks of a cluster means nothing on this machine."""

# No postponed annotations here: the compiler reads the types of the parameters.
from pathlib import Path

import pytest
from kfp import dsl, local

from pipeline.config import resolve
from pipeline.kubeflow.release import read_deployment
from pipeline.kubeflow.step_pods import on_cluster
from pipeline.steps import set_pod

RELEASE = read_deployment(Path(__file__).parents[1] / "deploy.yaml")


@dsl.component(base_image="python", install_kfp_package=False)  # type: ignore[untyped-decorator]
def double(number: int) -> int:
    return 2 * number


@pytest.mark.filterwarnings("ignore:.*have no effect in the current local runner:UserWarning")
@pytest.mark.filterwarnings("ignore:.*custom or non-Python base image:RuntimeWarning")
@pytest.mark.parametrize("name", ["latents", "train"])
def test_a_step_that_asks_for_a_cluster_runs_here_all_the_same(name: str, tmp_path: Path) -> None:
    pod = on_cluster(resolve("sd15-full", RELEASE.cluster), RELEASE)(name)
    assert pod.gpus == (name == "latents")

    @dsl.pipeline(name="here")  # type: ignore[untyped-decorator]
    def here() -> int:
        doubled: int = set_pod(double(number=21), pod).output
        return doubled

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    assert here().output == 42
