"""Run by mergekit's own Python: a list of recipes, one after the other, each with its own seed.

PYTHON rival.py JOBS.json        # [{"recipe": FILE, "out": FOLDER}, ...]; a line of JSON for each
"""

import json
import os
import sys
import traceback

import yaml
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config, make_tasks


def merge(text, out, options):
    documents = [document for document in yaml.safe_load_all(text) if document]
    if len(documents) == 1:
        documents[0].pop("name", None)
        run_merge(MergeConfiguration.model_validate(documents[0]), out, options)
        return
    steps = f"{out}-steps"
    os.makedirs(steps, exist_ok=True)
    configs, dependencies = load_config(text, steps)
    tasks = make_tasks(configs, dependencies, options, steps, out, False)
    Executor(tasks, math_device="cpu", storage_device="cpu").execute()


def main():
    with open(sys.argv[1], encoding="utf-8") as stream:
        jobs = json.load(stream)
    for job in jobs:
        options = MergeOptions(
            random_seed=0,
            quiet=True,
            write_model_card=False,
            lora_merge_cache=job["out"] + "-lora",
        )
        with open(job["recipe"], encoding="utf-8") as stream:
            text = stream.read()
        try:
            merge(text, job["out"], options)
            error = None
        except Exception as fault:
            error = f"{type(fault).__name__}: {fault}".splitlines()[0]
            traceback.print_exc(file=sys.stderr)
        print("RESULT " + json.dumps({"out": job["out"], "error": error}), flush=True)


if __name__ == "__main__":
    main()
