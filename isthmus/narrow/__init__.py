"""Training narrow networks: mirrored initialization, the paired head, projection after each step."""

from isthmus.narrow.mirror import mirror as mirror
from isthmus.narrow.mirror import pair as pair
from isthmus.narrow.regime import Regime as Regime
from isthmus.narrow.regime import attach as attach
