import subprocess
import sys

import numpy as np
from opacus.accountants.analysis import rdp
from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV

from common.accountants.opacus_analysis import domain_module, prv_module, rdp_module
from common.bundle import FEDERATION


def test_it_is_opacus_own_code_that_computes() -> None:
    orders = [2.0, 8.0, 32.0]
    ours = rdp_module().compute_rdp(q=0.1, noise_multiplier=1.5, steps=3, orders=orders)
    np.testing.assert_array_equal(
        ours, rdp.compute_rdp(q=0.1, noise_multiplier=1.5, steps=3, orders=orders)
    )
    points = np.linspace(-1, 1, 9)
    np.testing.assert_array_equal(
        prv_module().PoissonSubsampledGaussianPRV(0.1, 1.5).cdf(points),
        PoissonSubsampledGaussianPRV(0.1, 1.5).cdf(points),
    )
    assert domain_module().Domain(-1, 1, 4).dt == Domain(-1, 1, 4).dt


def test_a_process_that_only_prices_a_plan_loads_no_torch() -> None:
    code = (
        "import sys, client.app\n"
        "from common.accounting import Spend, epsilon\n"
        "assert epsilon([Spend(2.0, 0.1, 10)], 1e-5).value > 0\n"
        "assert not {'torch', 'opacus'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FEDERATION.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
