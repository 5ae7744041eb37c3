"""Finite data sets: one class, readers of official formats, generators; every way in is `load`."""

from isthmus.data.dataset import Dataset as Dataset
from isthmus.data.dataset import Shape as Shape
from isthmus.data.dataset import as_dataset as as_dataset
from isthmus.data.dataset import from_arrays as from_arrays
from isthmus.data.image_folder import ImageFolder as ImageFolder
from isthmus.data.image_folder import find_images as find_images
from isthmus.data.inputs import load_inputs as load_inputs
from isthmus.data.load import load as load
from isthmus.data.load import load_shape as load_shape
