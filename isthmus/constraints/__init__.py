"""Sets that weights are kept in: the nearest point, how far it is, and the normal cone there."""

from isthmus.constraints.ball import Ball as Ball
from isthmus.constraints.box import Box as Box
from isthmus.constraints.constraint import Constraint as Constraint
from isthmus.constraints.floor_ratio import FloorAndRatio as FloorAndRatio
from isthmus.constraints.product import Product as Product
from isthmus.constraints.restored import restored as restored
