"""The committed results as a page of tables with plots; every number on it comes from the JSON files beside it.

    python -m benchmarks.report

writes benchmarks/results/README.md and its SVG files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.interleaved import OFFICIAL
from benchmarks.plots import Bar, Panel, bars, lines, number_text
from benchmarks.record import RESULTS
from m2df_runtime.commands.console import main_entry
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write

PAGE = "README.md"
QUIET = 0.1  # share of the machine that others may use in a run to be trusted
HEAD = """# Measured results

Written by `python -m benchmarks.report` from the JSON files in this folder; not edited by hand. What each benchmark
does, and how to read it, stands in [benchmarks](../README.md). Ratios come first: they are taken between times of the
same round, and say how many times as long the other takes; above 1, m2df is faster.
"""
Record = dict[str, Any]
Files = dict[str, str]  # contents by file name


def build(results: Path) -> Files:
    """The page and its plots.

    Raises:
        InputError: The folder holds no results, or a file that is not one.
    """
    files: Files = {}
    sections = [HEAD]
    for path in sorted(results.glob("*.json"), key=lambda path: (_order(path.stem), path.stem)):
        kind = path.stem.partition("-")[0]
        if kind not in SECTIONS:
            raise InputError(f"{path}: not the result of a benchmark", f"known are {', '.join(SECTIONS)}")
        try:
            sections.append(SECTIONS[kind](json.loads(path.read_text(encoding="utf-8")), path.stem, files))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a result of this version: {error!r}", "measure it again") from None
    if len(sections) == 1:
        raise InputError(f"{results}: no results", "run make bench")
    files[PAGE] = "\n".join(sections)
    return files


def _order(stem: str) -> int:
    kind = stem.partition("-")[0]
    return list(SECTIONS).index(kind) if kind in SECTIONS else len(SECTIONS)


def _threads(settings: Record) -> str:
    """None means that nobody told the engines: each takes what it takes by itself."""
    count = settings["threads"]
    return f"{count} threads" if count else "threads as each engine chooses"


def latency(record: Record, stem: str, files: Files) -> str:
    """One query, stage by stage."""
    model, settings = record["model"], record["settings"]
    right = {name: engine for name, engine in record["engines"].items() if "failed" not in engine}
    title = f"## Latency: {model['name']}, {model['weights']} weights\n"
    what = (
        f"One query of {settings['frames']} frames of {settings['size']}×{settings['size']}, {settings['way']}-way "
        f"{settings['shot']}-shot, {_threads(settings)}; head `{model['head']}`, "
        f"{settings['rounds']} rounds, bundle `{model['sha256'][:12]}`.\n"
    )
    out = [title, what, _machine(record["environment"])]
    for stage, label in (("total", "Whole query, decoding included"), ("visual", "Image tower alone")):
        out.append(_ratio_table(record, right, stage, label))
    out.append(_time_table(record, right))
    wrong = {name: engine["failed"] for name, engine in record["engines"].items() if "failed" in engine}
    out += [f"Failed: {name}: {reason}.\n" for name, reason in wrong.items()]
    if record["left_out"]:
        out.append("Not measured here:\n")
        out += [f"* {name}: {reason}" for name, reason in record["left_out"].items()]
        out.append("")
    rows = [
        Bar(name, [engine["ms"][s]["p50"] for s in ("decode", "resize", "visual", "query")], engine["ours"])
        for name, engine in sorted(right.items(), key=lambda item: item[1]["ms"]["total"]["p50"])
    ]
    typical = median(sum(row.parts) for row in rows)
    files[f"{stem}.svg"] = bars(("decode", "resize", "visual", "query"), rows, "ms", cut_at=3 * typical)
    out.append(f"![Median milliseconds per stage]({stem}.svg)\n")
    return "\n".join(out)


def _ratio_table(record: Record, right: Record, stage: str, label: str) -> str:
    peers = {peer: beside for peer, beside in record["ratios"].items() if any(stage in v for v in beside.values())}
    if not peers:
        return ""
    own = [name for name, engine in right.items() if engine["ours"]]
    head = [label, *(_episode_name(peer) for peer in peers)]
    rows = [[name, *(_ratio(beside[name][stage]) for beside in peers.values())] for name in own]
    return _table(head, rows)


def _episode_name(peer: str) -> str:
    return "the official way: every clip of the episode anew, PyTorch eager fp32" if peer == OFFICIAL else peer


def _ratio(value: Record) -> str:
    return f"**{value['median']:.2f}** ({value['low']:.2f}–{value['high']:.2f})"


def _time_table(record: Record, right: Record) -> str:
    head = ["ms, p50", "precision", "decode", "resize", "copy", "visual", "support", "query", "**total**"]
    head += ["p90", "p95", "p99", "CPU time", "first run", "MiB", "cosine", "rounds"]
    rows = []
    entries = dict(right)
    if record["official"]:
        entries[OFFICIAL] = record["official"]
    for name, engine in entries.items():
        ms = engine["ms"]
        stages = [_p50(ms[stage]) for stage in ("decode", "resize", "copy", "visual", "support", "query", "total")]
        tail = [number_text(ms["total"][p]) for p in ("p90", "p95", "p99")] + [_p50(ms["cpu"])]
        first = number_text(engine["first_run_ms"]) if "first_run_ms" in engine else "–"
        memory = number_text(engine["peak_mib"]) if "peak_mib" in engine else "–"
        cosine = f"{engine['checked']['cosine']:.5f}" if "checked" in engine else "–"
        steady = "" if ms["total"]["stationary"] else " ¹"
        rows.append(
            [
                name,
                engine.get("precision", "fp32"),
                *stages,
                *tail,
                first,
                memory,
                cosine,
                f"{engine['rounds']}{steady}",
            ]
        )
    note = (
        f"`support` is one class, beside the total (in the {OFFICIAL}: all classes, in it); `cosine` is the smallest "
        f"with {record['reference']}. Below 100 rounds p99 says little more than the slowest.\n"
    )
    if any(row[-1].endswith("¹") for row in rows):
        note += "¹ not stationary: the medians of the two halves differ by more than a tenth.\n"
    return _table(head, rows) + "\n" + note


def _p50(values: Record | None) -> str:
    return "–" if values is None else number_text(values["p50"])


def scaling(record: Record, stem: str, files: Files) -> str:
    """Cost against size."""
    settings = record["settings"]
    title = f"## Scaling: graphs of {settings['model']}, random weights\n"
    what = (
        f"Head `{settings['head']}`, D = {settings['dim']}, {settings['frames']} frames and {settings['way']} classes "
        f"where these do not grow, {settings['threads']} threads; p50 in ms of {settings['rounds']} rounds "
        f"({settings['slow_rounds']} of the image tower).\n"
    )
    goal = "".join(
        f"One query against {budget['classes']:,} classes, D = {budget['dim']}, budget {budget['target_ms']:g} ms: "
        + ", ".join(
            f"{engine} {number_text(ms)} ms ({'met' if ms <= budget['target_ms'] else 'missed'})"
            for engine, ms in budget["p50_ms"].items()
        )
        + ".\n"
        for budget in record["budgets"]
    )
    out = [title, what, _machine(record["environment"]), goal]
    groups: dict[tuple[str, str], list[Record]] = {}
    for line in record["series"]:
        groups.setdefault((line["graph"], line["axis"]), []).append(line)
    panels = []
    for (graph, axis), found in groups.items():
        rows = [[line["engine"], *(_p50(ms) for ms in line["ms"])] for line in found]
        out.append(_table([f"{graph}, {axis}:", *(f"{size:,}" for size in found[0]["sizes"])], rows))
        points = {
            line["engine"]: [(size, ms["p50"]) for size, ms in zip(line["sizes"], line["ms"], strict=True)]
            for line in found
        }
        panels.append(Panel(f"{graph} by {axis}", points))
    files[f"{stem}.svg"] = lines(panels, "ms")
    out.append(f"![Milliseconds by size, both axes logarithmic]({stem}.svg)\n")
    return "\n".join(out)


def ceilings(record: Record, stem: str, files: Files) -> str:
    """What the machine can do, and how near each graph comes."""
    found, settings = record["ceilings"], record["settings"]
    products = ", ".join(f"{kind} {number_text(value)}" for kind, value in found["product_gflops"].items())
    frames = ", ".join(f"{size} {number_text(rate)}" for size, rate in found["decoded_frames_s_per_core"].items())
    what = (
        f"10⁹ operations per second of the fastest large matrix product in ONNX Runtime: {products}. Copied with "
        f"{settings['threads']} threads, read and written: {number_text(found['copy_gb_s'])} GB/s. Frames of H.264 "
        f"that one core decodes in a second: {frames}.\n"
    )
    rows = [
        [
            f"{model}: {graph}",
            *(number_text(stage[value]) for value in ("gflop", "mb", "ms")),
            *(f"{100 * stage[share]:.0f} %" for share in ("of_product", "of_copy")),
        ]
        for model, table in record["stages"].items()
        for graph, stage in table.items()
    ]
    head = ["graph, ONNX Runtime", "10⁹ operations", "weights, MB", "ms", "of the product rate", "of the copy rate ¹"]
    note = (
        f"¹ as if nothing but its weights crossed the memory's bus. {settings['frames']} frames, "
        f"{settings['way']} classes of one clip, {settings['way']} texts.\n"
    )
    return "\n".join(["## Ceilings\n", what, _machine(record["environment"]), _table(head, rows), note])


def teaching(record: Record, stem: str, files: Files) -> str:
    """Adding an action to many, and listing them."""
    settings, targets = record["settings"], record["targets"]
    names = {
        "add_s": f"add a class of {settings['new']} clips to {settings['classes']} classes",
        "encode_s": "encode its clips, by itself",
        "beside_encoding_s": "the difference",
        "calibration_s": f"calibrate after that ({settings['classes']} classes of {settings['shots']} clips)",
        "list_s": f"`m2df-run bank list`, {settings['listed']} classes, whole process",
        "list_clock_s": "the same by the clock",
    }
    rows = [
        [
            what,
            *(", ".join(f"{p} {record[kind][name][p]:.2f}" for p in ("p50", "p95")) for kind in ("folder", "file")),
            str(targets.get(name, "")),
        ]
        for name, what in names.items()
    ]
    return "\n".join(
        [
            "## Teaching\n",
            _machine(record["environment"]),
            _table(["processor seconds", "support folder", "bank file", "budget"], rows),
        ]
    )


def serve(record: Record, stem: str, files: Files) -> str:
    """The server under load, with a camera, and idle."""
    settings, targets = record["settings"], record["targets"]
    rows = [
        [f"clips a second, {settings['clients']} clients at once", str(record["rate"]), ""],
        ["of the bulk command in the same run", str(record["share_of_bulk"]), str(targets["share_of_bulk"])],
        [f"one answer among {settings['clients']} clients", _percentiles(record["answer_ms"], "ms"), ""],
        ["one answer of a client alone", _percentiles(record["alone_ms"], "ms"), ""],
        [
            f"scores after the frame that completes a window, {settings['fps']} frames a second",
            _percentiles(record["age_s"], "s"),
            str(targets["age_s"]),
        ],
        ["idle: memory with its decoders, MiB", str(record["idle_mib"]), str(targets["idle_mib"])],
        ["idle: share of a core", str(record["idle_cpu"]), str(targets["idle_cpu"])],
    ]
    return "\n".join(["## Server\n", _machine(record["environment"]), _table(["what", "measured", "budget"], rows)])


def startup(record: Record, stem: str, files: Files) -> str:
    """A fresh process."""
    overhead, answer = record["overhead_ms"], record["answer_ms"]
    never = all(record["imported_never"].values())
    rows = [
        ["process start to answer, less decoding and inference", _percentiles(overhead, "ms")],
        ["budget for its p50", f"{record['target_ms']:g} ms"],
        ["process start to answer", _percentiles(answer, "ms")],
        ["all imports, as Python counts them", f"{record['import_ms']:g} ms"],
        ["peak memory", f"{record['peak_mib']:g} MiB"],
        ["installed: runtime and all it needs", f"{record['installed_bytes'] / 1e6:.0f} MB"],
        [f"{' and '.join(record['imported_never'])} imported", "never" if never else "yes"],
    ]
    slowest = list(record["import_ms_by_package"].items())[:8]
    files[f"{stem}.svg"] = bars(("import",), [Bar(name, [ms], name.startswith("m2df")) for name, ms in slowest], "ms")
    sizes = list(record["installed_bytes_by_package"].items())[:6]
    most = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in sizes)
    return "\n".join(
        [
            "## Start-up of `m2df-run` with a warm support bank\n",
            _machine(record["environment"]),
            _table(["what", "measured"], rows),
            f"Largest packages installed, MB: {most}.\n",
            f"![Import time by package]({stem}.svg)\n",
        ]
    )


def _percentiles(values: Record, unit: str) -> str:
    return f"p50 {values['p50']:.0f} {unit}, p95 {values['p95']:.0f} {unit}"


def evaluation(record: Record, stem: str, files: Files) -> str:
    """Episodes from features."""
    settings = record["settings"]
    head = ["shots", "ratio, clock", "ratio, processor time", "from features, s", "clips encoded once, s", "anew, s ¹"]
    rows = []
    for result in record["results"]:
        seconds = result["seconds"]
        rows.append(
            [
                str(result["shot"]), f"**{result['ratio_wall']:g}**", f"**{result['ratio_cpu']:g}**",
                number_text(seconds["episodes_from_features"]["wall"]), number_text(seconds["encoding_once"]["wall"]),
                number_text(seconds["reencoding_extrapolated"]["wall"]),
            ]
        )  # fmt: skip
    what = (
        f"{settings['episodes']:,} {settings['way']}-way episodes of {settings['clips']} clips, "
        f"{record['model']['name']}.\n"
    )
    note = f"¹ every episode's clips read and encoded anew, extrapolated from {settings['sample']} episodes.\n"
    return "\n".join(["## Evaluation\n", what, _machine(record["environment"]), _table(head, rows), note])


def training(record: Record, stem: str, files: Files) -> str:
    """Episodes of the head."""
    settings, ratio = record["settings"], record["ratio_cpu"]
    minutes = record["core_minutes_per_1000_episodes"]
    head, forward, backward = (minutes[name] for name in ("head", "forward", "backward"))
    rows = [
        ["head trained on features encoded once", "1", number_text(head)],
        ["clips encoded in every episode ¹", ratio["frozen_and_encoded_every_time"], number_text(head + forward)],
        ["image tower trained too ¹", ratio["image_tower_trained_too"], number_text(head + backward)],
    ]
    rows[1:] = [[name, f"**{value:g}**", cost] for name, value, cost in rows[1:]]
    what = (
        f"`{settings['head']}` at the sizes of {settings['model']}, {settings['way']}-way {settings['shot']}-shot, "
        f"{settings['queries']} queries per class, one thread; budget for the first row {record['target_minutes']:g}.\n"
    )
    note = f"¹ extrapolated from {settings['encoded']}.\n"
    columns = ["1,000 training episodes", "ratio, processor time", "core minutes"]
    return "\n".join(["## Training\n", what, _machine(record["environment"]), _table(columns, rows), note])


def accuracy(record: Record, stem: str, files: Files) -> str:
    """Accuracy beside descriptors that need no training, one table per set of clips."""
    out = ["## Accuracy beside descriptors that need no training\n"]
    for name, data in record.items():
        settings, shots = data["settings"], list(data["results"])
        subjects = list(next(iter(data["results"].values())))
        head = [f"{name}, % ± 95 % interval", *(part for shot in shots for part in (shot, "the bundle leads by"))]
        rows = []
        for subject in subjects:
            cells = []
            for shot in shots:
                values = data["results"][shot][subject]
                lead = values.get("bundle_leads_by")
                cells += [_interval(values), _interval(lead, sign=True) if lead else "–"]
            rows.append([subject, *cells])
        about = (
            f"{settings['clips']} clips of {len(settings['classes'])} classes, {settings['episodes']:,} episodes, "
            f"chance {settings['chance']:g}; {data['bundle']['name']} `{data['bundle']['sha256'][:12]}`.\n"
        )
        out += [about, _table(head, rows)]
        if settings["unknown"]:
            measures = {"auroc": "AUROC", "false_positives": "answered at 95 % recall", "oscr": "OSCR"}
            head = [f"the same with {settings['unknown']} unknown classes, %"]
            head += [f"{shot}: {measure}" for shot in shots for measure in measures.values()]
            rows = [
                [subject, *(_bounds(data["results"][shot][subject]["open_set"][m]) for shot in shots for m in measures)]
                for subject in subjects
            ]
            out.append(_table(head, rows))
    return "\n".join(out)


def _bounds(values: Sequence[float]) -> str:
    """A value in percent with its interval."""
    value, low, high = values
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def rejection(record: Record, stem: str, files: Files) -> str:
    """Whether calibration does what it says, one table per set of clips."""
    out = ["## Rejection\n"]
    for name, data in record.items():
        settings, results = data["settings"], data["results"]
        actions = {"val": "generated validation actions", "test": "generated test actions", None: "clips"}
        about = (
            f"{settings['draws']:,} banks of each size, {settings['clips']} {actions[settings['actions']]} of "
            f"{len(settings['classes'])} classes, {settings['unknown']} unknown classes"
            f"{', queries of other people or places' if settings['groups'] else ''}; "
            f"{data['bundle']['name']} `{data['bundle']['sha256'][:12]}`. In % with 95 % intervals over banks.\n"
        )
        rates = list(next(iter(results.values()))["miss_rates"])
        head = [name, "AUROC"]
        head += [f"{float(r):.0%} wished: {w}" for r in rates for w in ("claimed", "missed", "unknown answered")]
        rows = [
            [size, _bounds(found["auroc"])]
            + [
                cell
                for one in found["miss_rates"].values()
                for cell in (f"{one['claimed']:.1f}", _bounds(one["missed"]), _bounds(one["unknown_answered"]))
            ]
            for size, found in results.items()
        ]
        words = [name, "right", "said", "without temperature", "surprise, nats", "without temperature"]
        said = [
            [size, _bounds(found["accuracy"]), *(_bounds(found[w]["sure"]) for w in ("said", "untempered"))]
            + [f"{found[w]['surprise'][0]:.2f}" for w in ("said", "untempered")]
            for size, found in results.items()
        ]
        out += [about, _table(head, rows), _table(words, said)]
    return "\n".join(out)


def none_logit(record: Record, stem: str, files: Files) -> str:
    """By how much other scores of unknown queries lead the distance, trained ones and free ones."""
    settings, results = record["settings"], record["results"]
    about = (
        f"{settings['way']} known and {settings['unknown']} unknown classes of generated validation actions, "
        f"{settings['episodes']} episodes of each number of shots, AUROC in %, in brackets the 95 % interval of the "
        f"paired difference over episodes. Networks were trained {settings['seeds']} times on {settings['actions']} "
        "composed actions, of which a part was held out to choose size and step; "
        f"{record['bundle']['name']} `{record['bundle']['sha256'][:12]}`.\n"
    )
    head = ["score", *(part for shot in results for part in (shot, "beside the distance", "on held-out actions"))]
    names = list(dict.fromkeys(name for found in results.values() for name in found["others"]))
    rows = [["distance", *(part for found in results.values() for part in (f"{found['distance']:.1f}", "–", "–"))]]
    for name in names:
        cells = []
        for found in results.values():
            one = found["others"].get(name)
            held = one and one.get("held_out")
            cells += [f"{one['auroc']:.1f}", _lead(one)] if one else ["–", "–"]
            cells.append(_lead(held) if held else "–")
        rows.append([name, *cells])
    return "\n".join(["## Trained to say none of these\n", about, _table(head, rows)])


def _lead(values: Record) -> str:
    lead, low, high = values["leads_by"]
    return f"{lead:+.2f} ({low:+.2f} to {high:+.2f})"


def _interval(values: Record, *, sign: bool = False) -> str:
    return f"{values['accuracy']:{'+' if sign else ''}.1f} ± {values['ci95']:.1f}"


def lint(record: Record, stem: str, files: Files) -> str:
    """What `bank lint` finds, and what it names wrongly."""
    settings, results = record["settings"], record["results"]
    kinds = list(next(iter(results.values()))["found"])
    actions = {"val": "validation", "test": "test"}[settings["split"]]
    about = (
        f"{settings['draws']} banks of each size and kind of {settings['clips']} generated clips of "
        f"{settings['actions']} {actions} actions; {record['bundle']['name']} `{record['bundle']['sha256'][:12]}`.\n"
    )
    head = ["bank", "clean banks with a finding", *(f"{kind}: found" for kind in kinds)]
    head += [f"{kind}: wrongly, per clean bank" for kind in kinds]
    rows = [
        [size, _share(found["clean_banks_with_a_finding"]), *(_share(found["found"][kind]) for kind in kinds)]
        + [f"{found['wrongly_named_per_clean_bank'][kind]:.2f}" for kind in kinds]
        for size, found in results.items()
    ]
    return "\n".join(["## Mistakes in banks\n", about, _table(head, rows)])


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def events(record: Record, stem: str, files: Files) -> str:
    """How well events are found in recordings."""
    settings = record["settings"]
    first = next(iter(record["quality"].values()))["test"]["defaults"]
    what = (
        f"{first['recordings']} generated recordings of {settings['length']:g} s, {settings['minutes']:g} minutes, of "
        f"actions that no training has seen; {settings['shots']} support clips of each taught action, windows of "
        f"{first['window']:g} s every {first['stride']:g} s; {record['model']['name']} in "
        f"{record['model']['precision']}, `{record['model']['sha256'][:12]}`. Rules were chosen on other actions and "
        f"other recordings.\n"
    )
    head = ["test recordings", "F1, IoU 0.3", "F1, IoU 0.5", "precision", "recall", "false alarms per hour", "delay, s"]
    rows = []
    for kind, found in record["quality"].items():
        options = ", ".join(f"{name} {value:g}" for name, value in found["chosen"].items())
        rows.append(_events(f"{kind}, default rules", found["test"]["defaults"]))
        rows.append(_events(f"{kind}, chosen rules ({options})", found["test"]["chosen"]))
    for rules, result in (record["joined"] or {}).items():
        told = {"defaults": "default rules", "chosen": "rules chosen on generated recordings"}[rules]
        rows.append(_events(f"{result['recordings']} joins of real clips (hard cuts), {told}", result))
    return "\n".join(["## Recordings\n", what, _machine(record["environment"]), _table(head, rows)])


def stream(record: Record, stem: str, files: Files) -> str:
    """What recordings cost."""
    settings, target = record["settings"], record["target_times_real_time"]
    what = (
        f"{settings['size'][0]}×{settings['size'][1]} at {settings['fps']:g} frames and {settings['bit_rate'] / 1e6:g} "
        f"Mbit per second, two people, windows of "
        f"{settings['window']:g} s every {settings['stride']:g} s; {record['model']['name']} in "
        f"{record['model']['precision']}, `{record['model']['sha256'][:12]}`. The camera's movement is taken out of a "
        f"picture that shakes. Budget on 2 cores: {target} times real time.\n"
    )
    out = ["## Cost of recordings\n", what, _machine(record["environment"])]
    for camera, found in record["cameras"].items():
        whole, command = found["stream"], found["command"]
        out.append(
            f"{camera[0].upper()}{camera[1:]}: **{whole['times_real_time']:g} times real time**; `m2df-run` takes "
            f"{number_text(command['cpu_per_minute'])} processor seconds per minute of video and "
            f"{number_text(command['peak_mib'])} MiB. Nothing moves in {found['still']} of {found['windows']} "
            f"windows.\n"
        )
        stages, usual = found["stage_cpu_per_minute"], found["usual_cpu_per_minute"] or {}
        total, of_usual = sum(stages.values()), sum(usual.values())
        rows = [
            [
                name,
                number_text(value),
                f"{100 * value / total:.0f} %",
                number_text(usual[name]) if name in usual else "–",
            ]
            for name, value in stages.items()
        ]
        rows.append(["**all**", number_text(total), "100 %", number_text(of_usual) if usual else "–"])
        columns = ["processor seconds per minute of video", "m2df", "share", "a loop with PyTorch eager ¹"]
        note = (
            f"¹ every window prepared and encoded anew from decoded frames, extrapolated from "
            f"{settings['usual_extrapolated_from_windows']} windows.\n"
            if usual
            else f"¹ not measured: {found['usual_left_out']}.\n"
        )
        out += [_table(columns, rows), note]
    return "\n".join(out)


def cameras(record: Record, stem: str, files: Files) -> str:
    """Live cameras, as they become more than the machine keeps up with."""
    settings, alone, target = record["settings"], record["alone"]["stage_cores_per_camera"], record["target"]
    what = (
        f"Cameras of {settings['size'][0]}×{settings['size'][1]} at {settings['fps']:g} frames and "
        f"{settings['bit_rate'] / 1e6:g} Mbit per second over HTTP, a "
        f"keyframe every {settings['keyframes_s']:g} s; windows of {settings['window']:g} s every "
        f"{settings['stride']:g} s; {record['model']['name']} in {record['model']['precision']}, "
        f"`{record['model']['sha256'][:12]}`. Stages alone take {number_text(sum(alone.values()))} cores per camera: "
        + ", ".join(f"{name} {number_text(value)}" for name, value in alone.items() if value)
        + ".\n"
    )
    head = ["cameras", "cores used", "frames looked at", "dropped", "windows answered", "skipped"]
    head += ["age of a frame, s: p50", "p95", "p99", "window to answer, s: p50", "p95", "to event, s: p50", "p95"]
    rows = [
        [
            str(run["cameras"]),
            number_text(run["cores_used"]),
            f"{100 * run['frames'] / run['frames_expected']:.0f} %",
            ", ".join(f"{count} {cause}" for cause, count in run["dropped"].items()) or "none",
            f"{100 * run['windows'] / run['windows_expected']:.0f} %",
            str(run["windows_skipped"]),
            *_seconds(run["age_s"], "p50", "p95", "p99"),
            *_seconds(run["window_to_answer_s"], "p50", "p95"),
            *_seconds(run["window_to_event_s"], "p50", "p95"),
        ]
        for run in record["cameras"]
    ]
    note = f"Budget: {target['cameras']} cameras on 2 cores with frames at most {target['age_s']:g} s old.\n"
    title = "## Cameras\n" if stem == "cameras" else f"## Cameras, {record['model']['name']}\n"
    return "\n".join([title, what, _machine(record["environment"]), _table(head, rows), note])


def _seconds(values: Record | None, *names: str) -> list[str]:
    return [f"{values[name]:.2f}" if values else "–" for name in names]


def bulk(record: Record, stem: str, files: Files) -> str:
    """Thousands of clips."""
    names = {
        "reading": "read, alone",
        "inference": "answer, alone",
        "bulk": "both: `m2df-run --out`",
        "in_turn": "one after the other: `matcher.predict` in a loop",
        "opencv": "a loop with other answers: OpenCV decodes every frame, no region",
    }
    kinds = record["kinds"]
    head = ["stage", *(f"{kind}: {what}" for kind in kinds for what in ("clips per second", "processor seconds each"))]
    rows = [
        [what, *(number_text(found[name][unit]) for found in kinds.values() for unit in ("per_second", "cpu_per_clip"))]
        for name, what in names.items()
    ]
    ratios = {
        "of the slowest stage alone": "of_slowest",
        "of what both stages can reach on shared processors": "of_shared",
        "beside one after the other": "beside_in_turn",
        "beside OpenCV": "beside_opencv",
    }
    rows += [[what, *(cell for found in kinds.values() for cell in (f"**{found[name]:g}**", ""))]
             for what, name in ratios.items()]  # fmt: skip
    public = record["public"]
    note = (
        f"Budget {record['budget']:g} of the slowest stage alone. {public['source']}: {public['per_second']:g} per "
        "second, as stated by NVIDIA.\n"
    )
    return "\n".join(["## Thousands of clips\n", _machine(record["environment"]), _table(head, rows), note])


def _events(name: str, result: Record) -> list[str]:
    """A row of what was found."""
    counts, strict = result["events"]["iou_0.3"], result["events"]["iou_0.5"]
    shares = (counts["f1"], strict["f1"], counts["precision"], counts["recall"])
    rate = result["false_alarms_per_hour"]
    return [
        name,
        *("–" if share is None else f"{100 * share:.1f} %" for share in shares),
        "–" if rate is None else f"{rate:.0f} (in {result['background_hours']:.2f} h)",
        f"{result['delay']['median']:.1f}" if result["delay"] else "–",
    ]


def gpu(record: Record, stem: str, files: Files) -> str:
    """TensorRT beside PyTorch and ONNX Runtime."""
    settings, where = record["settings"], record["engine_environment"]
    rows = [[name, f"**{value:g}**"] for name, value in record["ratios"].items()]
    times = [
        [f"{subject}, {kind}, {part}", *(number_text(values[p]) for p in ("p50", "p95", "min"))]
        for subject, engines in record["tensorrt"].items()
        for kind, parts in engines.get("milliseconds", {}).items()
        for part, values in parts.items()
    ]
    times += [
        [name, *(number_text(values[p]) for p in ("p50", "p95", "min"))]
        for name, values in record["others"].items()
        if isinstance(values, dict) and "p50" in values
    ]
    what = (
        f"{settings['model']}, {settings['frames']} frames, {settings['way']}-way; {where['gpu']}, "
        f"TensorRT {where['tensorrt']}.\n"
    )
    tables = [_table(["ratio", "measured"], rows), _table(["ms", "p50", "p95", "least"], times)]
    return "\n".join(["## GPU\n", what, *tables])


def _machine(environment: Record) -> str:
    """Where and when, and whether to trust it."""
    known = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in known if name in environment["versions"])
    used = environment.get("others_used")
    busy = "not recorded" if used is None else f"{100 * used:.0f} %"
    warning = "" if used is None or used <= QUIET else " **The machine was busy: trust the ratios only roughly.**"
    return (
        f"{environment['processor']}, {environment['cores']} cores, Python {environment['python']}, {versions}; "
        f"{environment['time'][:10]}; share of the machine used by others: {busy}.{warning}\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines_ = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines_) + "\n"


SECTIONS: dict[str, Callable[[Record, str, Files], str]] = {
    "latency": latency,
    "scaling": scaling,
    "ceilings": ceilings,
    "startup": startup,
    "teaching": teaching,
    "serve": serve,
    "evaluation": evaluation,
    "training": training,
    "accuracy": accuracy,
    "rejection": rejection,
    "none_logit": none_logit,
    "lint": lint,
    "events": events,
    "stream": stream,
    "cameras": cameras,
    "bulk": bulk,
    "gpu": gpu,
}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--results", type=click.Path(path_type=Path), help="Folder of JSON files [benchmarks/results].")
def cli(results: Path | None) -> None:
    """Write the page of tables and plots of a folder of results."""
    folder = results or RESULTS
    for name, text in build(folder).items():
        atomic_write(folder / name, text.encode())
        click.echo(f"written: {folder / name}")


if __name__ == "__main__":
    main_entry(cli)
