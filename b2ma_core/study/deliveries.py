"""What a folder of a vendor's labels lacks: it is written to be sent, and asked for once."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from b2ma_core.black_box import BlackBox, LabelFolder
from b2ma_core.data.datasets import Data
from b2ma_core.files import PROJECT, png_bytes, png_header, write_bytes
from b2ma_core.params import Params, base_study
from b2ma_core.queries import view_name, views
from b2ma_core.study.asking import queries

TITLE = "to be answered with a label map"  # of the pictures in the outbox: no answer bears it


def deliveries(
    params: Params, box: BlackBox, parts: Sequence[Data], batch: int = 8, data: Path = PROJECT / "data"
) -> tuple[list[Data], list[str]]:
    """The parts that a box can answer now; of a folder of labels those that have been delivered whole.

    Args:
        params: the study.
        box: the box.
        parts: ``target_train``, which the student learns from, and others, which a folder may leave out.
        batch: images that are worked on at once.
        data: the folder of all prepared data. ``<data>/<study>/outbox/<view>/<name>.png`` get the images that a folder
            has no answers to, and no others.

    Returns:
        The parts, and a sentence about each that is left out. Boxes that are no folder can answer all of them.

    Raises:
        FileNotFoundError: if the folder lacks answers to ``target_train``: which images are to be answered, and where
            the answers belong.
        ValueError: if answers lie in the outbox, or the folder itself does: nothing in it is touched then.
    """
    if not isinstance(box, LabelFolder):
        return list(parts), []
    outbox, count = data / base_study(params.study) / "outbox", queries(params, box)
    _refuse_answers_in(outbox, box.root)
    train = next(part for part in parts if part.name == "target_train")
    digests = dict(zip(train.names, train.digests, strict=True))
    answered, notes, lacking, sent = [], [], {}, set()
    for part in sorted(parts, key=lambda part: part is not train):
        if any(digests.get(name, digest) != digest for name, digest in zip(part.names, part.digests, strict=True)):
            notes.append(f"{part.name}: the box is not asked about it, since it has other images under names of "
                         f"{train.name}, which a folder cannot tell apart")  # fmt: skip
            continue
        gaps = [(i, k) for i, name in enumerate(part.names) for k in range(count) if not box.path(name, k).exists()]
        if not gaps:
            answered.append(part.name)
        elif part is train or part.labels is not None:
            everything = len(part) * count
            notes.append(f"{part.name}: the box is not scored on it, {len(gaps)} of {everything} answers are missing")
            lacking[part.name] = gaps
            sent |= _send(part, gaps, count, outbox, batch)
    for path in set(_lying_in(outbox)) - sent:  # answered by now, or an image that is no longer there
        path.unlink()
    if train.name in lacking:
        gaps, everything = lacking[train.name], len(train) * count
        whole = min(k for _, k in gaps)
        fewer = f", or set box_queries to {whole}: so many views are there for all images" if whole else ""
        if whole > 1:
            fewer += ", and learn_from to votes, since auto compares all six"
        scores = f" ({len(sent) - len(gaps)} of them for scores alone)" if len(sent) > len(gaps) else ""
        lying = sorted(path for pattern in ("*.*", "*/*.*") for path in box.root.glob(pattern) if path.is_file())
        strange = ""
        if len(gaps) == everything and lying:
            strange = (f" None of the {len(lying)} files there has such a name, {lying[0]} for one: answers are PNGs, "
                       "folders of views begin with a number, letters with accents count as stored.")  # fmt: skip
        first, space = box.path(train.names[gaps[0][0]], gaps[0][1]), params.space_of("box")
        raise FileNotFoundError(
            f"{box.root}: {everything - len(gaps)} of {everything} label maps of {train.name} are there, the next is "
            f"{first}.{strange} {len(sent)} images{scores} are in {outbox}, to be sent to the box's owner. Put each "
            f"answer into {box.root} under the {'name' if box.flat else 'folder and name'} of its image, an 8-bit PNG "
            f"of {space.name} ids ({space.ids_in_files}), and start the same command again{fewer}"
        )
    return [part for part in parts if part.name in answered], notes


def _refuse_answers_in(outbox: Path, root: Path) -> None:
    """What is sent is written anew and removed when it is answered: an answer there would be lost."""
    own, answers = outbox.resolve(), root.resolve()
    if own == answers or own in answers.parents:
        raise ValueError(f"box_root: {root} lies in {outbox}, where images to be sent are written; name "
                         "another folder, and put the answers there")  # fmt: skip
    misplaced = [path for path in _lying_in(outbox)
                 if png_header(path)[1:] != (2,) or TITLE.encode() not in path.read_bytes()[:200]]  # fmt: skip
    if misplaced:
        raise ValueError(f"{misplaced[0]}: is no image to be sent; {len(misplaced)} such files lie in {outbox}. Are "
                         f"they answers? Move them to {root}, under the same names")  # fmt: skip


def _lying_in(outbox: Path) -> list[Path]:
    return [path for path in sorted(outbox.glob("*/*.png")) if path.is_file() and path.name[0] != "."]


def _send(part: Data, gaps: Sequence[tuple[int, int]], count: int, outbox: Path, batch: int) -> set[Path]:
    """Write views (index of the image, number of the view) into the outbox; what is there as it should be stays."""
    sent, gaps, images = set(), set(gaps), sorted({i for i, _ in gaps})
    for start in tqdm(range(0, len(images), batch), desc=f"outbox of {part.name}", unit="batch", mininterval=5):
        indices = images[start : start + batch]
        for k, view in enumerate(views(part.images[indices], count)):
            for i, image in zip(indices, view, strict=True):
                if (i, k) not in gaps:
                    continue
                path, content = outbox / view_name(k) / f"{part.names[i]}.png", png_bytes(image, TITLE)
                sent.add(path)
                if not path.is_file() or path.read_bytes() != content:
                    write_bytes(path, content)
    return sent
