from isthmus.bounds import bounds as bounds
from isthmus.bounds.pieces import linear_pieces as linear_pieces
from isthmus.certificate import Certificate as Certificate
from isthmus.certify import certify as certify
from isthmus.constraints import Ball as Ball
from isthmus.constraints import Box as Box
from isthmus.constraints import FloorAndRatio as FloorAndRatio
from isthmus.constraints import Product as Product
from isthmus.data import Dataset as Dataset
from isthmus.data import Shape as Shape
from isthmus.data import from_arrays as from_arrays
from isthmus.data import load as load
from isthmus.export import export_onnx as export_onnx
from isthmus.export import load_model as load_model
from isthmus.export import save as save
from isthmus.memorize import memorize as memorize
from isthmus.narrow import Regime as Regime
from isthmus.narrow import attach as attach
from isthmus.narrow import mirror as mirror
from isthmus.narrow import pair as pair
from isthmus.narrow.kkt import kkt as kkt
from isthmus.nets.fold import fold as fold
from isthmus.nets.paired import PairedHead as PairedHead
from isthmus.patch import patch as patch
from isthmus.predict import predict as predict
from isthmus.verify import verify as verify

__version__: str
