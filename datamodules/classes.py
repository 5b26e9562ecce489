"""What `datamodules` offers; once it is imported, a config may name a data module in short."""

from datamodules.base import ImageDataModule
from datamodules.cifar import CIFAR
from datamodules.detection.folder import DetectionFolder
from datamodules.image_folder import ImageFolder
from datamodules.image_table import ImageTable
from datamodules.nyu.depth_v2 import NYUDepthV2
from datamodules.segmentation.camvid import CamVid
from datamodules.segmentation.folder import SegmentationFolder
from datamodules.splits import Subset
from datamodules.synthetic import Synthetic
from datamodules.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR",
    "CamVid",
    "DetectionFolder",
    "ImageDataModule",
    "ImageFolder",
    "ImageTable",
    "NYUDepthV2",
    "SegmentationFolder",
    "Subset",
    "Synthetic",
    "TinyImageNet",
]
