"""The demo set as a tensorflow-datasets builder, made without TensorFlow (host code)."""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from safer_jax.datasets.demo import TEXT_FIELDS, rows, rules, scenes
from safer_jax.shapes import TAGS

TAG_FIELDS = ("image_tag", "text_tag", "combine_tag")


class _Info(tfds.core.DatasetInfo):
    """What describes the set; without the look into a bucket on the network that comes first otherwise."""

    def initialize_from_bucket(self) -> None:
        """Do nothing: the set is made here."""


class Builder(tfds.core.GeneratorBasedBuilder):
    """Drawn scenes with questions and three tags by rule. Ask for `file_format="array_record"`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {field: tfds.features.Text() for field in TEXT_FIELDS}
        tags = {field: tfds.features.ClassLabel(names=TAGS) for field in TAG_FIELDS}
        image = tfds.features.Image(shape=(scenes.SIZE, scenes.SIZE, 3), encoding_format="png")
        return _Info(
            builder=self,
            description="Small drawn scenes and questions about them, tagged safe or unsafe by rule.",
            features=tfds.features.FeaturesDict({"image": image, **texts, **tags}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in rules.ROWS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for number, record in enumerate(rows.rows(split)):
            fields = record._asdict()
            yield number, {"image": record.images[0], **{field: fields[field] for field in TEXT_FIELDS + TAG_FIELDS}}
