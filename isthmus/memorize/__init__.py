"""Networks written down, not trained, that memorize a data set (Yun, Sra and Jadbabaie 2019)."""

from isthmus.memorize.result import Memorized as Memorized
from isthmus.memorize.result import Status as Status
from isthmus.memorize.search import memorize as memorize
