"""Records what pytest reports of the matrix's cases: `--record=FILE`.

The file is one column's results, as JSON: what ran where, and one entry for each
case, made of pytest's report of it and of nothing else.
"""

import json
from pathlib import Path

import pytest
import recording


def pytest_addoption(parser):
    parser.addoption(
        "--record", metavar="FILE", type=Path, help="write the matrix's column here"
    )


def pytest_configure(config):
    # Workers report to the process that started them.
    if config.getoption("record", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config))


class Recorder:
    def __init__(self, config):
        self.config = config
        self.cases = []

    def pytest_runtest_logreport(self, report):
        # Of this folder's other tests nothing belongs on the page.
        is_case = "row" in dict(report.user_properties)
        if is_case and (report.when == "call" or report.failed):
            self.cases.append(recording.entry(report))

    # After the workers' last reports, whose order is that of their work.
    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus):
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        import behaviours

        order = [row.name for row in behaviours.ROWS]
        cases = sorted(self.cases, key=lambda c: (order.index(c["row"]), c["layer"]))
        column = {
            "column": self.config.getoption("record").stem,
            **recording.where(self.config.getoption("backend")),
            "rows": [
                {
                    "name": r.name,
                    "group": r.group,
                    "beyond": r.group == behaviours.BEYOND,
                }
                for r in behaviours.ROWS
            ],
            "cases": cases,
        }
        path = self.config.getoption("record")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(column, indent=1, ensure_ascii=False) + "\n")
