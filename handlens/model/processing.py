"""Texts and images -> the tensors of a batch, under the names that transformers and the model card use.

The work is done by the shared ground: `handlens.images` cuts, `handlens.processor` builds prompts, `handlens.tokenizer`
encodes. What is here puts their results into tensors and keeps them in files. Facts: image_processing_minicpmv.py,
processing_minicpmv.py and preprocessor_config.json of the MiniCPM-Llama3-V 2.5 model repository.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs, ProcessorMixin

from handlens.config import FAMILIES, Family, ModelConfig, SliceOptions, family_named
from handlens.decode import check_request, decode_base64, open_image
from handlens.errors import InputError, ModelFileError
from handlens.images import SlicedImage, cut, patches
from handlens.model.configuration import CODE_KEYS
from handlens.processor import Inputs, Processor, as_messages
from handlens.prompts import TEMPLATES, ImageSlot, Message, Part, Special, render
from handlens.tokenizer import Tokenizer

log = logging.getLogger("handlens")

#: Stands for an image in a prompt that is written out.
IMAGE_TAG = "(<image>./</image>)"


def collate(requests: Sequence[Inputs], pad_id: int = 0) -> BatchFeature:
    """The batch of some requests as `MiniCPMV` takes it; shorter prompts are padded on the left.

    `input_ids` and `attention_mask` [B, T]; if there are images, also the four tensors of all their slices (see there).
    """
    longest = max(len(request.input_ids) for request in requests)
    ids = torch.full((len(requests), longest), pad_id)  # [B, T]
    mask = torch.zeros_like(ids)
    owners: list[int] = []
    bounds: list[list[int]] = []
    for row, request in enumerate(requests):
        padding = longest - len(request.input_ids)
        ids[row, padding:] = torch.from_numpy(request.input_ids)
        mask[row, padding:] = 1
        owners += [row] * len(request.image_bound)
        bounds += (request.image_bound + padding).tolist()
    batch = {"input_ids": ids, "attention_mask": mask}
    if owners:
        batch |= slice_tensors([image for request in requests for image in request.images])
        batch |= {"slice_request": torch.tensor(owners), "image_bound": torch.tensor(bounds)}
    return BatchFeature(batch)


def slice_tensors(images: Sequence[SlicedImage]) -> dict[str, torch.Tensor]:
    """`pixel_values` [N, 3, p, p * L] and `tgt_sizes` [N, 2] of all slices; patches side by side, zeros behind them."""
    p = images[0].plan.patch_size
    rows = [torch.from_numpy(patches(pixels, p)) for image in images for pixels in image.slices]  # [L, 3 * p * p] each
    cells = pad_sequence(rows, batch_first=True).unflatten(-1, (3, p, p))  # [N, L, 3, p, p]
    sizes = [size for image in images for size in image.plan.tgt_sizes]
    return {"pixel_values": cells.permute(0, 2, 3, 1, 4).flatten(3), "tgt_sizes": torch.tensor(sizes)}


class MiniCPMVImagesKwargs(ImagesKwargs, total=False):
    """What `from_pretrained` may change."""

    max_slice_nums: int
    scale_resolution: int
    patch_size: int
    image_feature_size: int


class MiniCPMVImageProcessor(BaseImageProcessor):
    """Cuts images into slices. Its attributes have the names of the official preprocessor_config.json, of which it
    keeps also what it does not use; only names of code are dropped."""

    model_input_names: ClassVar = ["pixel_values", "tgt_sizes", "slice_request", "image_bound"]
    valid_kwargs = MiniCPMVImagesKwargs

    def __init__(
        self,
        *,
        max_slice_nums: int = 9,
        scale_resolution: int = 448,
        patch_size: int = 14,
        image_feature_size: int = 96,
        norm_mean: Sequence[float] = (0.5, 0.5, 0.5),
        norm_std: Sequence[float] = (0.5, 0.5, 0.5),
        version: float | str = 2.5,
        handlens_family: str | None = None,
        **others,
    ):
        for key in CODE_KEYS:
            if others.pop(key, None):
                log.warning("preprocessor_config.json names code to run (%s); handlens runs none and ignores it", key)
        super().__init__(**others)
        self.max_slice_nums = max_slice_nums
        self.scale_resolution = scale_resolution
        self.patch_size = patch_size
        self.image_feature_size = image_feature_size
        self.norm_mean, self.norm_std = list(norm_mean), list(norm_std)
        self.version, self.handlens_family = version, handlens_family

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> "MiniCPMVImageProcessor":
        """The image processor that belongs to a model."""
        family = config.family
        return cls(
            max_slice_nums=config.slices.max_slice_nums,
            scale_resolution=config.slices.scale_resolution,
            patch_size=config.slices.patch_size,
            image_feature_size=config.resampler.query_num,
            norm_mean=config.vision.image_mean,
            norm_std=config.vision.image_std,
            version=float(family.official_version) if family.official_version else None,
            handlens_family=None if family.official_version else family.name,
        )

    @property
    def family(self) -> Family:
        """The rules of the model that this belongs to."""
        if self.handlens_family is not None:
            return family_named(self.handlens_family)
        for family in FAMILIES.values():
            if family.official_version == str(self.version):
                return family
        raise ModelFileError(
            f"the image processor is of MiniCPM-V version {self.version!r}, which handlens does not run"
        )

    @property
    def slices(self) -> SliceOptions:
        """How images are cut."""
        return SliceOptions(
            scale_resolution=self.scale_resolution, max_slice_nums=self.max_slice_nums, patch_size=self.patch_size
        )

    def preprocess(self, images: Any, *, return_tensors: str | None = "pt") -> BatchFeature:
        """The slices of an image, of the images of a request (a list), or of several requests (a list of lists)."""
        check_tensor_type(return_tensors)
        if not isinstance(images, list | tuple):
            images = [images]
        requests = images if images and isinstance(images[0], list | tuple) else [images]
        sliced = [[self.cut(image) for image in request] for request in requests]
        owners = [row for row, request in enumerate(sliced) for image in request for _ in image.slices]
        if not owners:
            return BatchFeature({})
        return BatchFeature({**slice_tensors([*chain(*sliced)]), "slice_request": torch.tensor(owners)})

    def cut(self, image: Any) -> SlicedImage:
        """The slices of one image, which may be a PIL image, a path or the bytes of a file."""
        return cut(open_image(image), self.slices, self.norm_mean, self.norm_std)


class MiniCPMVProcessor(ProcessorMixin):
    """Conversations, or prompts that are written out, -> the tensors of a batch.

    The prompts are those of the rest of handlens: no template of a checkpoint is run, and what a user types stays text.
    """

    def __init__(self, image_processor: MiniCPMVImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_model_config(cls, config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> "MiniCPMVProcessor":
        """The processor that belongs to a model."""
        return cls(MiniCPMVImageProcessor.from_model_config(config), tokenizer)

    @property
    def prompts(self) -> "Prompts":
        """What builds the prompts, with the present state of the tokenizer and the image processor."""
        return Prompts(self.image_processor, shared_tokenizer(self.tokenizer))

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        *,
        padding: bool | str = True,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """The batch of one or more prompts that are written out, as `apply_chat_template(tokenize=False)` does it.

        Each image takes the place of a tag `(<image>./</image>)`, in order; tags beyond the images stay text. Special
        tokens of the chat format count as such, all others stay text; the first token is bos, written or not. Text from
        strangers belongs into a conversation (`apply_chat_template`), where none of it is more than text.

        `images`: an image or a list for one text; for several a list of lists, or one list that their tags share out.
        """
        texts = [text] if isinstance(text, str) else list(text)
        prompts = self.prompts
        requests = zip(texts, images_of(texts, images), strict=True)
        return self._batch([prompts.written(*request) for request in requests], padding, return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """The prompt of a conversation, or of each in a list of them, that asks for the assistant's next turn.

        With `tokenize` and `return_dict` a batch for the model, with `tokenize` its ids alone, else text. A message is
        {"role", "content"}; a content is text or a list of {"type": "text", "text"} and {"type": "image"}, the image
        under "image", "path", "url" (a file, or data:) or "base64". `processor_kwargs` may hold `padding` and
        `return_tensors`, where transformers' pipelines put them.
        """
        if not add_generation_prompt or continue_final_message:
            raise InputError(
                "prompts end where the assistant's next turn begins, as in the original; add_generation_prompt=False "
                "and continue_final_message=True ask for others"
            )
        shape = {"padding": padding, "return_tensors": return_tensors, **(processor_kwargs or {})}
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations = [plain(messages) for messages in (conversation if several else [conversation])]
        prompts = self.prompts
        if tokenize:
            batch = self._batch([prompts(loaded(messages)) for messages in conversations], **shape)
            return batch if return_dict else batch["input_ids"]
        texts = [prompts.write(messages) for messages in conversations]
        return texts if several else texts[0]

    def _batch(self, requests: list[Inputs], padding: bool | str, return_tensors: str | None) -> BatchFeature:
        check_tensor_type(return_tensors)
        lengths = {len(request.input_ids) for request in requests}
        if padding not in (True, "longest") and (padding is not False or len(lengths) > 1):
            raise InputError(f"padding={padding!r} for prompts of {sorted(lengths)} tokens; padding=True is wanted")
        pad_id = self.tokenizer.pad_token_id
        return collate(requests, 0 if pad_id is None else pad_id)

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """The text of ids [n]. Padding is left out by its place, since the token for it is an ordinary "!"; special
        tokens that belong to answers (`<box>`, ...) are never skipped."""
        prompts, ids = self.prompts, np.asarray(ids).reshape(-1).tolist()
        shown = prompts.shown_ids if skip_special_tokens else frozenset(prompts.tokenizer.special.values())
        return prompts.tokenizer.decode(prompts.unpadded(ids, self.tokenizer.pad_token_id), shown)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = True) -> list[str]:
        """The text of each of the sequences [B, n]."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def post_process_image_text_to_text(self, generated_outputs: Iterable[Any], **options) -> list[str]:
        """The texts of answers, without white space at their ends."""
        return [text.strip() for text in self.batch_decode(generated_outputs, **options)]

    def save_pretrained(self, save_directory: str | os.PathLike, **options) -> list[str]:
        """Writes the tokenizer's files, processor_config.json and, as the official way is, preprocessor_config.json."""
        files = super().save_pretrained(save_directory, **options)
        return files + self.image_processor.save_pretrained(save_directory)

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, name_or_path: str, subfolder: str = "", **options
    ):
        # The official tokenizer_config.json names a class that only its remote code has; tokenizer.json says it all.
        options.pop("trust_remote_code", None)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, subfolder=subfolder, **options)
        tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer


class Prompts(Processor):
    """The shared processor, which also writes prompts out and reads them."""

    def __init__(self, images: MiniCPMVImageProcessor, tokenizer: Tokenizer):
        # What a processor looks at in the config of a model, whose sizes nobody knows here.
        vision = SimpleNamespace(image_mean=images.norm_mean, image_std=images.norm_std)
        resampler = SimpleNamespace(query_num=images.image_feature_size)
        super().__init__(
            SimpleNamespace(family=images.family, slices=images.slices, vision=vision, resampler=resampler), tokenizer
        )
        self.template = TEMPLATES[images.family.template]

    def write(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation (see `plain`) as text, a tag in the place of each image."""
        numbers = count()
        turns = [
            Message(msg["role"], tuple(part if isinstance(part, str) else ImageSlot(next(numbers)) for part in content))
            for msg in messages
            for content in [msg["content"]]
        ]
        parts = render(turns, self.template, self.names)
        return "".join(part if isinstance(part, str) else getattr(part, "name", IMAGE_TAG) for part in parts)

    def written(self, text: str, images: Sequence[Any]) -> Inputs:
        """The inputs of a prompt that is written out."""
        pictures = []
        for image in images:
            pictures.append(open_image(source_of(image), self.limits))
            check_request(pictures, self.limits)
        before, *others = text.split(IMAGE_TAG)
        if len(others) < len(pictures):
            raise InputError(f"{len(pictures)} images were given, but the text has {len(others)} tags {IMAGE_TAG}")
        parts = self._parts(before)
        for index, piece in enumerate(others):
            parts += [ImageSlot(index) if index < len(pictures) else IMAGE_TAG, *self._parts(piece)]
        bos = Special(self.names.bos)
        return self.inputs(parts if parts[:1] == [bos] else [bos, *parts], pictures)

    def _parts(self, text: str) -> list[Part]:
        """The text with the special tokens of the chat format apart; `<image>` and the like are none of them."""
        turns = chain.from_iterable([*turn.before, *turn.after] for turn in self.template.turns.values())
        names = {part.name for part in turns if isinstance(part, Special)} | {self.names.bos}
        pieces = re.split(f"({'|'.join(map(re.escape, sorted(names)))})", text)
        return [Special(piece) if piece in names else piece for piece in pieces if piece]

    def unpadded(self, ids: list[int], pad_id: int | None) -> list[int]:
        """The ids without padding before the bos of a prompt and after the stop token of an answer."""
        bos = self.tokenizer.id(self.names.bos)
        if bos in ids and all(token == pad_id for token in ids[: ids.index(bos)]):
            ids = ids[ids.index(bos) :]
        last_stop = max((place for place, token in enumerate(ids) if token in self.stop_ids), default=len(ids))
        return ids[: last_stop + 1] if all(token == pad_id for token in ids[last_stop + 1 :]) else ids


#: The tokenizer of the shared ground for each fast one, with the number of tokens that it was made of.
_TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer]] = WeakKeyDictionary()


def shared_tokenizer(tokenizer: Tokenizer | PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer of the shared ground that encodes like this one of transformers."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"the tokenizer is a {type(tokenizer).__name__}; one of handlens, or a fast one of transformers, is wanted"
        )
    size, made = _TOKENIZERS.get(tokenizer, (None, None))
    if size != len(tokenizer):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            tokenizer.backend_tokenizer.save(str(path))
            made = Tokenizer.from_file(path)
        _TOKENIZERS[tokenizer] = len(tokenizer), made
    return made


def check_tensor_type(name: str | None) -> None:
    """InputError unless PyTorch tensors are asked for."""
    if name not in ("pt", "auto", None):
        raise InputError(f"return_tensors={name!r}; 'pt' is what there is")


def images_of(texts: Sequence[str], images: Any) -> list[Sequence[Any]]:
    """The images of each text."""
    if images is None:
        return [[]] * len(texts)
    if not isinstance(images, list | tuple):
        images = [images]
    if any(isinstance(image, list | tuple) for image in images):
        if len(images) != len(texts):
            raise InputError(f"there are lists of images for {len(images)} prompts, but {len(texts)} prompts")
        return list(images)
    if len(texts) == 1:
        return [images]
    ends = np.cumsum([text.count(IMAGE_TAG) for text in texts]).tolist()
    if ends[-1] != len(images):
        raise InputError(
            f"{len(images)} images were given, but the {len(texts)} texts have {ends[-1]} tags {IMAGE_TAG}"
        )
    return [images[start:end] for start, end in zip([0, *ends], ends)]


def plain(messages: Any) -> list[dict[str, Any]]:
    """Messages of transformers' format whose contents are lists of texts and of images that are not opened yet."""
    return [
        {"role": msg["role"], "content": [plain_part(part) for part in content]}
        for msg in as_messages(messages)
        for content in [msg["content"] if isinstance(msg["content"], list | tuple) else [msg["content"]]]
    ]


def plain_part(part: Any) -> Any:
    """The text or the image of one part of a content, None for an image of which only the place is known."""
    if not isinstance(part, Mapping):
        return part
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if part.get("type") != "image":
        raise InputError(f"a message holds a part of type {part.get('type')!r:.40}; 'text' and 'image' are accepted")
    if "base64" in part:
        return decode_base64(part["base64"])
    found = [part[key] for key in ("image", "path", "url") if part.get(key) is not None]
    return source_of(found[0]) if found else None


def source_of(image: Any) -> Any:
    """An image in a form that messages may hold; strings are paths or data: URLs."""
    if not isinstance(image, str):
        return open_image(image) if isinstance(image, bytes) else image
    if image.startswith("data:"):
        return decode_base64(image)
    if re.match(r"https?://", image):
        raise InputError(f"{image:.80} would have to be downloaded, which handlens never does; pass the image itself")
    return Path(image.removeprefix("file://"))


def loaded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages; InputError if an image in them is a place only."""
    for msg in messages:
        if any(part is None for part in msg["content"]):
            raise InputError(
                "a message has a part {'type': 'image'} without an image; put it there under 'image', or write the "
                "prompt out with tokenize=False and pass it on with images="
            )
    return messages
