"""Datasets on the device: Taskonomy's layout, read without torch."""

from edge_agent.datasets.check import Fault, check_dataset
from edge_agent.datasets.images import SampleFault
from edge_agent.datasets.layout import DatasetError, Manifest, Sample, read_manifest
from edge_agent.datasets.taskonomy import Batch, BuildingsDataset, Split, open_dataset

__all__ = [
    "Batch",
    "BuildingsDataset",
    "DatasetError",
    "Fault",
    "Manifest",
    "Sample",
    "SampleFault",
    "Split",
    "check_dataset",
    "open_dataset",
    "read_manifest",
]
