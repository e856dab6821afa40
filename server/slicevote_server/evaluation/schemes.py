"""The columns of the tables: how slices are sampled and how their hits become a first match."""

from __future__ import annotations

from dataclasses import dataclass, field

from slicevote_server.sampling import (
    AllSlices,
    EvenlySpacedSlices,
    EveryMillimetres,
    EveryNthSlice,
    RandomSlices,
    SamplingScheme,
)
from slicevote_server.voting import Aggregation, CountVotes, GaussianVotes, SimilarityVotes

NEIGHBOURS = 5
"""Hits that are looked up for every slice; all columns but one use the first alone."""

CANDIDATES = 50
"""Volumes, the best by votes, that late interaction re-ranks, as in a search by default."""

ALL = "all"
"""Every slice votes; late interaction re-ranks what it gives."""

SLICEWISE = "slicewise"
"""The baseline: every slice is a case."""


@dataclass(frozen=True)
class Scheme:
    """One column.

    Attributes:
        name: As in the tables.
        meaning: What it does, for the report.
        sampling: Which slices of the query vote.
        aggregation: What their hits vote.
        neighbours: Hits of every slice that vote.
        late_interaction: Re-rank by late interaction.
        by_slice: No aggregation; every slice is a case.
    """

    name: str
    meaning: str
    sampling: SamplingScheme = field(default_factory=AllSlices)
    aggregation: Aggregation = field(default_factory=CountVotes)
    neighbours: int = 1
    late_interaction: bool = False
    by_slice: bool = False


def all_schemes(*, sigma: float, seed: int) -> tuple[Scheme, ...]:
    """Gives the columns: the paper's in its order, then ours.

    Args:
        sigma: Width of the Gaussian of `weighted`, as a fraction of the volume.
        seed: Of the random samplings.
    """
    return (
        *(
            Scheme(f"random_{count}", f"{count} slices at random", RandomSlices(count, seed))
            for count in (5, 10, 20, 40, 80)
        ),
        *(
            Scheme(f"every_{gap}mm", f"a slice every {gap} mm", EveryMillimetres(float(gap)))
            for gap in (3, 5, 7, 10, 12, 15)
        ),
        *(Scheme(f"every_{step}_slices", f"one slice of {step}", EveryNthSlice(step)) for step in (3, 5, 10)),
        Scheme(ALL, "every slice votes 1"),
        Scheme("weighted", f"Gaussian weights, sigma {sigma:.4g} of the volume", aggregation=GaussianVotes(sigma)),
        Scheme(SLICEWISE, "no aggregation: every slice is a case", by_slice=True),
        Scheme("even_16", "16 slices, evenly spaced", EvenlySpacedSlices(16)),
        Scheme("summed_similarity", "every slice votes its similarity", aggregation=SimilarityVotes()),
        Scheme(
            f"neighbours_{NEIGHBOURS}",
            f"the {NEIGHBOURS} nearest slices vote, not the first alone",
            neighbours=NEIGHBOURS,
        ),
        Scheme(
            "late_interaction",
            f"the best {CANDIDATES} volumes of `all`, re-ranked by late interaction (MaxSim)",
            late_interaction=True,
        ),
    )
