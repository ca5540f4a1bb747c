"""Contract tests for plugin authors: plain functions that raise AssertionError with a sentence.

    from zoo.testing import check_estimate, check_exact_reload

    def test_halving_survives_a_save(tmp_path):
        model = zoo.load("tiny-code")
        halved = check_estimate(model, "mine.halve", {"share": 0.5})
        check_exact_reload([halved], tmp_path)

Zoo's own tests call the same functions for every compressor and family. What is tested has to be registered, since a
fresh process finds it by its name. `zoo plugins check NAME` and the pytest plugin (`--zoo-plugin NAME`) run
`zoo.testing.contract` over everything a plugin adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.testing.computed import Outputs as Outputs
    from zoo.testing.computed import difference as difference
    from zoo.testing.computed import outputs as outputs
    from zoo.testing.exact import check_estimate as check_estimate
    from zoo.testing.exact import check_exact_reload as check_exact_reload
    from zoo.testing.exact import check_refuses as check_refuses
    from zoo.testing.exact import outputs_in_fresh_process as outputs_in_fresh_process
    from zoo.testing.exact import random_state_kept as random_state_kept

HOMES = {
    "zoo.testing.computed": ("Outputs", "difference", "outputs"),
    "zoo.testing.exact": (
        "check_estimate",
        "check_exact_reload",
        "check_refuses",
        "outputs_in_fresh_process",
        "random_state_kept",
    ),
}
__getattr__, __dir__ = face(__name__, HOMES)
