"""A short form of make soak: after rounds of everything that happens to a broker, all that was taken is given back."""

import pytest

from soak import Soak


@pytest.mark.limit(180)
def test_everything_is_given_back(pki):
    """Descriptors are the same, and the ledger but for the digits of counters in $SYS; nothing was refused."""
    soak = Soak(pki)
    try:
        soak.start()
        for _ in range(8):      # caches and tables get their size
            soak.round()
        before = soak.sample()
        for _ in range(24):
            soak.round()
        after = soak.sample()
        soak.broker.stop()
    finally:
        soak.broker.cleanup()
    assert after.descriptors == before.descriptors
    assert after.of_the_helper == before.of_the_helper
    assert after.ledger <= before.ledger + 512
    assert not any("sandbox" in kind for kind in soak.told), soak.told
