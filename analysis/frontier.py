"""Which runs does no other run beat in both speed-up and FVD?

python analysis/frontier.py studies/demo [--output DIR]

Writes frontier.csv, frontier_probability.csv, frontier.png and frontier.pdf. Prints the frontier of each budget and the
probability of each configuration to be on it. Arms and finalists are means over seeds, other sampled runs are single
runs.
"""

from pathlib import Path

from reco_tune.reporting import Evidence
from reco_tune.reporting.analysis_cli import run_script, save
from reco_tune.reporting.numbers import number
from reco_tune.reporting.sections.frontier import build
from reco_tune.settings import SEARCH


def work(sources: list[str], output: Path) -> str:
    evidence = Evidence.read(sources[0])
    found = evidence.frontier
    save(build(evidence), output)
    lines, quality = [], evidence.quality
    for budget, volume in found.hypervolume.items():
        lines.append(f"{budget}: hypervolume {volume:.3f} over {len(found.at(budget))} configurations")
        for row in found.non_dominated(budget).to_dict("records"):
            name = row["trial"] if row["arm"] == SEARCH else row["arm"]
            knee = ", the knee" if row["knee"] else ""
            lines.append(
                f"  {row['speedup']:5.2f}x  {quality.title} {number(row[quality.key], quality.digits):>7s}"
                f"  probability {row['probability']:.2f}  {name}{knee}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(work, __doc__)
