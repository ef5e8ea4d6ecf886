"""Multi-task methods as weights: functions of the gradients' inner products."""

from gradsurgery.methods.aligned_mtl import aligned_mtl_weights
from gradsurgery.methods.cagrad import cagrad_weights
from gradsurgery.methods.db_mtl import dbmtl_weights
from gradsurgery.methods.gradvac import gradvac_weights
from gradsurgery.methods.imtl_g import config_weights, imtl_g_weights
from gradsurgery.methods.mgda import mgda_weights
from gradsurgery.methods.nash_mtl import fairgrad_weights, nash_mtl_weights
from gradsurgery.methods.sdmgrad import sdmgrad_weights
from gradsurgery.methods.upgrad import dualproj_weights, upgrad_weights

__all__ = [
    "aligned_mtl_weights",
    "cagrad_weights",
    "config_weights",
    "dbmtl_weights",
    "dualproj_weights",
    "fairgrad_weights",
    "gradvac_weights",
    "imtl_g_weights",
    "mgda_weights",
    "nash_mtl_weights",
    "sdmgrad_weights",
    "upgrad_weights",
]
