"""SlimPajama as a data set of TensorFlow Datasets.

    tfds build data_pipelines/slimpajama --manual_dir=/data/SlimPajama --data_dir=/data/tfds

TFDS looks for this file and the class `Builder` by name. The seqio task `slimpajama_tfds`
(`tasks.py`) reads the data set.
"""

import os
from collections.abc import Iterator

import apache_beam as beam
import tensorflow_datasets as tfds

from data_pipelines.text.inputs import relative_names
from data_pipelines.text.rows import read_documents
from data_pipelines.text.sources import SLIMPAJAMA, SPLIT_GLOBS, list_files

Example = tuple[str, dict[str, str | None]]


class Builder(tfds.core.GeneratorBasedBuilder):
    """An example is a row, {"text", "redpajama_set_name"}; TFDS shuffles them permanently."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Give --manual_dir the folder that holds SlimPajama-627B's train/ and validation/."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        # A label's number is the source id of our token stores.
        names = tfds.features.ClassLabel(names=list(SLIMPAJAMA.sets.values()))
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "redpajama_set_name": names}
            ),
            homepage="https://huggingface.co/datasets/cerebras/SlimPajama-627B",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, beam.PTransform]:
        folder = os.fspath(dl_manager.manual_dir)
        return {split: self._generate_examples(list_files(folder, split)) for split in SPLIT_GLOBS}

    def _generate_examples(self, files: list[str]) -> beam.PTransform:
        named = list(zip(files, relative_names(files), strict=True))
        return beam.Create(named) | beam.Reshuffle() | beam.FlatMapTuple(read_examples)


def read_examples(file: str, name: str) -> Iterator[Example]:
    """Yields a file's rows under unique keys, which begin with the file's unique name.

    Raises:
      UserError: at the first bad row, naming file and line.
    """
    for number, document in enumerate(read_documents(file)):
        yield (
            f"{name}/{number}",
            {"text": document.text, "redpajama_set_name": document.set_name},
        )
