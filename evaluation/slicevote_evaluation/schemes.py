"""The schemes that are compared, one column each in the tables: how slices are sampled and how their hits vote."""

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
"""Hits looked up for every slice. Every scheme but one uses only the first."""

CANDIDATES = 50
"""Volumes, the best by votes, that late interaction re-ranks: the default of a search."""

ALL = "all"
"""Every slice votes 1."""

GAUSSIAN = "weighted"
"""Gaussian votes, under the name of the paper's column."""

SLICE_WISE = "slicewise"
"""The baseline without aggregation: every slice is a case."""

LATE_INTERACTION = "late_interaction"
"""`ALL`, re-ranked by late interaction."""


@dataclass(frozen=True)
class Scheme:
    """One way to get from hits to a first match.

    Attributes:
        name: Name of its column.
        sampling: Which slices of the query vote.
        aggregation: How their hits vote.
        neighbours: How many hits of every slice vote.
        late_interaction: Re-rank by late interaction.
        slice_wise: Do not aggregate; every slice is a case.
    """

    name: str
    sampling: SamplingScheme = field(default_factory=AllSlices)
    aggregation: Aggregation = field(default_factory=CountVotes)
    neighbours: int = 1
    late_interaction: bool = False
    slice_wise: bool = False


def all_schemes(*, sigma: float, seed: int) -> tuple[Scheme, ...]:
    """Return all schemes: the paper's in its order, then ours.

    Args:
        sigma: Width of the Gaussian, as a fraction of the volume.
        seed: Seed of the random samplings.
    """
    return (
        *(Scheme(f"random_{count}", RandomSlices(count, seed)) for count in (5, 10, 20, 40, 80)),
        *(Scheme(f"every_{gap}mm", EveryMillimetres(float(gap))) for gap in (3, 5, 7, 10, 12, 15)),
        *(Scheme(f"every_{step}_slices", EveryNthSlice(step)) for step in (3, 5, 10)),
        Scheme(ALL),
        Scheme(GAUSSIAN, aggregation=GaussianVotes(sigma)),
        Scheme(SLICE_WISE, slice_wise=True),
        Scheme("even_16", EvenlySpacedSlices(16)),
        Scheme("summed_similarity", aggregation=SimilarityVotes()),
        Scheme(f"neighbours_{NEIGHBOURS}", neighbours=NEIGHBOURS),
        Scheme(LATE_INTERACTION, late_interaction=True),
    )
