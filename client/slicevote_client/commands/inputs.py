"""Volumes of files and folders, with the labels of their manifests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import typer
from slicevote_volumes import Discovery, Problem, Volume, discover
from slicevote_volumes.manifest import Manifest, find_manifest, labelled, load_manifest

from slicevote_client.commands.failures import CommandError
from slicevote_client.commands.progress import progress
from slicevote_client.commands.terminal import printable, say, say_error


def discover_volumes(
    paths: list[Path], modality: str, manifest: Path | None, no_manifest: bool, *, quiet: bool
) -> Discovery:
    """Find the volumes in files and folders, and label them with the manifest that lists them.

    Args:
        paths: Files and folders.
        modality: DICOM modality code of files that do not say it; empty if none was given.
        manifest: The manifest to use; None looks for one beside and above every volume.
        no_manifest: Look for no manifest.
        quiet: Print nothing.
    """
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"there is no file or folder {printable(path)}")
    with progress("reading headers", None, quiet) as advance:
        count = itertools.count(1)
        found = discover(paths, modality=modality, on_file=lambda _: advance(None, done=next(count)))
    given = load_manifest(manifest) if manifest is not None else None
    used: set[Path] = set()
    by_folder: dict[Path, Manifest | None] = {}
    volumes = []
    for volume in found.volumes:
        folder = volume.paths[0].parent
        if given is None and not no_manifest and folder not in by_folder:
            by_folder[folder] = find_manifest(folder)
        table = given or by_folder.get(folder)
        row = table.row_for(volume) if table is not None else None
        if table is not None and row is not None:
            used.add(table.file)
        volumes.append(volume if row is None else labelled(volume, row))
    _say_unused_modality(volumes, modality)
    if used and not quiet:
        say(f"labels from {', '.join(map(str, sorted(used)))}")
    return replace(found, volumes=volumes)


def _say_unused_modality(volumes: list[Volume], modality: str) -> None:
    """Warn of volumes that say another modality themselves than the one that was given."""
    others = [volume for volume in volumes if modality and volume.modality != modality]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        say_error(
            f"warning: {others[0].source}{more}: --modality {modality} is not used, because the file or its manifest "
            f"says {others[0].modality}"
        )


def pick_volume(found: Discovery, path: Path, pick: int | None) -> Volume:
    """Return the one volume that was found, or the one with the number `pick`, from 1."""
    if not found.volumes:
        raise CommandError(nothing_found(found, path))
    count = len(found.volumes)
    if count > 1 and pick is None:
        listed = "\n".join(
            printable(f"  {number}: {volume.description()}  {volume.source}")
            for number, volume in enumerate(found.volumes, 1)
        )
        raise typer.BadParameter(f"{printable(path)} holds {count} volumes; choose one with --pick:\n{listed}")
    if pick is not None and pick > count:
        raise typer.BadParameter(f"{printable(path)} holds {count} volumes", param_hint="--pick")
    return found.volumes[(pick or 1) - 1]


def nothing_found(found: Discovery, *paths: Path) -> str:
    """Return a sentence that says why no volume was found."""
    where = ", ".join(map(str, paths))
    if found.problems:
        return f"no volume can be read in {where}: " + "; ".join(
            f"{problem.path}: {problem.reason}" for problem in found.problems
        )
    files = f"{found.skipped} file(s), none of them" if found.skipped else "no file that is"
    return f"there is no volume in {where}: {files} a DICOM image or NIfTI (.nii, .nii.gz)"


def say_problems(found: Discovery) -> None:
    """Print on stderr what could not be read."""
    for problem in found.problems:
        say_error(f"not read: {problem.path}: {problem.reason}")


def say_warnings(found: Discovery) -> None:
    """Print every warning once on stderr, with the first file that it is about and the number of others."""
    paths: dict[str, list[Path | None]] = {}
    for warning in found.warnings:
        paths.setdefault(warning.reason, []).append(warning.path)
    for reason, where in paths.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        say_error(f"warning: {where[0]}{more}: {reason}")


def problem_list(problems: Iterable[Problem]) -> list[dict[str, str]]:
    """Return problems or warnings as JSON has them."""
    return [{"path": str(problem.path), "reason": problem.reason} for problem in problems]
