"""The pipelines as they are written down."""

from __future__ import annotations

import statistics

import pytest

from magmerge.core import registry
from magmerge.core.catalogue import catalog
from magmerge.core.errors import UnknownNameError
from magmerge.studies.reproduction.pipelines import PUBLISHED_MEAN, find_pipeline, pipeline_names
from magmerge.studies.reproduction.reproduction_table import EXPERTS, ZERO_SHOT

NAMES = ["bert", "clip-b16", "clip-b32", "clip-l14", "glue", "llama"]


def test_all_are_there() -> None:
    assert pipeline_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_methods_exist_and_published_models_are_known(name: str) -> None:
    catalog()
    pipeline = find_pipeline(name)
    for method in pipeline.methods:
        registry.methods.get(method)
    for entry in pipeline.published:
        for model, row in entry.models.items():
            if model not in (ZERO_SHOT, EXPERTS):
                registry.methods.get(model)
            assert set(row) <= {*pipeline.experts, PUBLISHED_MEAN}


@pytest.mark.parametrize("name", NAMES)
def test_published_means_are_those_of_their_rows(name: str) -> None:
    for entry in find_pipeline(name).published:
        for row in entry.models.values():
            tasks = [value for task, value in row.items() if task != PUBLISHED_MEAN]
            if tasks:
                # Each is rounded to a tenth, and the published mean is of unrounded ones.
                assert row[PUBLISHED_MEAN] == pytest.approx(statistics.mean(tasks), abs=0.15)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean clip-b32"):
        find_pipeline("clip-b23")
