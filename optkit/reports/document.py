"""The typed form of report.json: what its JSON Schema is made from, and what a report that is read is held against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optkit.report import SCHEMA

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Status = Literal["passed", "failed", "error", "blocked", "deferred", "waived", "interrupted", "skipped"]


class Part(BaseModel):
    """Base of a report's parts: every key that is named here is there; a later optkit may add others."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Seconds(Part):
    """Seconds of a step's pass and of its check; 0 where it was cached or not reached."""

    run: float | None
    check: float | None


class Cached(Part):
    """Whether a step's pass and its check came out of the cache."""

    run: bool | None
    check: bool | None


class ArtifactPart(Part):
    """What a step made."""

    format: str
    digest: str
    size_bytes: int
    path: str
    files: list[str]
    signature: dict[str, Any] | None


class Failure(Part):
    """What stopped a step, or put off its check."""

    class_: str = Field(alias="class")
    code: str = Field(pattern=r"^OPK-\d{3}$", description="`optkit explain CODE` says more")
    what: str
    hint: str = Field(description="one thing to try")
    subject: str
    details: str
    where: str = Field(description="FILE:LINE:COLUMN in the recipe, or empty")
    phase: str | None = Field(None, description="run or check")


class Finding(Part):
    """A problem that no bound is needed for, such as a NaN, or a note."""

    kind: str
    output: str | None
    sample: int | None
    text: str


class Comparison(Part):
    """What was measured of an artifact against another model, by output and metric."""

    samples: int
    problems: list[Finding]
    notes: list[Finding]
    outputs: dict[str, dict[str, dict[str, Any]]]


class Judgement(Part):
    """Whether a bound holds on an output."""

    against: str = Field("source", description="whose answers: the source's, or of a conversion its parent step's")
    bound: str | None
    reason: str
    output: str | None
    held: bool
    measured: float | None
    worst_sample: int | None
    text: str
    stated_by: str | None


class CasePart(Part):
    """A check at one set of sizes: the samples, other sizes of the dims, or edge values."""

    name: str
    kind: str
    sizes: dict[str, int]
    samples: int
    source: Comparison
    parent: Comparison | None = None
    scores: dict[str, dict[str, Any]] = Field({}, description="by task metric, of the judging set")
    verdicts: list[Judgement]
    held: bool


class CheckPart(Part):
    """A step's check against the source model."""

    against: str
    data: str | None
    precision: str | None
    lossy: bool
    as_parent: bool = Field(False, description="whether its parent's answers have to be its own but for rounding")
    bounds: list[str]
    stated_by: list[str]
    metrics: list[dict[str, Any]]
    waived: str | None = Field(description="the reason why it was skipped")
    provider: str | None
    held: bool | None
    cases: list[CasePart]


class LayerPart(Part):
    """A tensor inside an artifact beside the same one of what it was made from; SQNR of the worst sample, in dB.

    300 is equal to the last bit, -300 a NaN, an infinity or noise without any signal.
    """

    tensor: str
    operator: str = Field(description="what makes it, in the format's own words")
    node: str
    module: str = Field(description="the torch module it comes from, or empty")
    before_db: float = Field(description="on the worst way into it")
    after_db: float
    local_db: float | None = Field(description="what is made between there and here, on the other model's tensors")
    estimated: bool = Field(description="whether local_db is told from before_db and after_db alone")
    alone_db: float | None = Field(description="the other model's outputs with this error alone; null: not tried")
    nonfinite: bool = Field(description="whether it has a NaN or infinity that the other lacks")
    fused: bool = Field(False, description="whether the runtime computes it otherwise in the whole model than alone")


class BlamePart(Part):
    """Which layer made a check fail, by the nearest ancestor that has tensors in common."""

    against: str | None = Field(description="the ancestor; null where there is none")
    case: str
    samples: list[int]
    blamed: LayerPart | None
    text: str = Field(description="what was found, in one line")
    problem: str = Field(description="why nothing could be told, or empty")
    layers: list[LayerPart] = Field(description="in the order of execution")
    worst: list[int] = Field(description="places in `layers`, the worst first")
    compared: int
    tensors: int = Field(description="how many the artifact has")
    output_db: float | None
    notes: list[str]


class Ratio(Part):
    """How many times as fast, with a 95 % interval."""

    value: float
    low: float
    high: float
    rounds: int
    clock: Literal["wall", "processor"] = Field("wall", description="whose time was compared")
    taken: float | None = Field(None, description="share of the time that other programs had the processor meanwhile")


class Latency(Part):
    """Quantiles of one inference, in milliseconds."""

    p50: float
    p90: float
    p99: float


class Race(Part):
    """A speed beside another model's, measured in turns."""

    against: str
    ratio: Ratio
    verdict: Literal["faster", "slower", "same"]
    sizes: dict[str, int]
    threads: int
    provider: str | None
    latency_ms: Latency
    parent_latency_ms: Latency
    samples_per_second: float | None = None
    peak_bytes: int | None = Field(None, description="most memory that its process had resident")
    parent_peak_bytes: int | None = None


class Must(Part):
    """What the recipe says that a step must be beside its parent."""

    must: str
    held: bool
    text: str


class GatePart(Part):
    """One gate on one delivery; `measured` and `limit` are in `unit`."""

    gate: str
    scope: Literal["recipe", "step"]
    status: Literal["held", "failed", "deferred", "not judged"]
    measured: float | None
    limit: float
    unit: str
    text: str


class Deferred(Part):
    """What speaks for a step whose check this machine cannot make, and the cases left to the target."""

    beside: dict[str, Any] | None = None
    cases: list[dict[str, Any]] = []


class StepPart(Part):
    """One step of the graph."""

    id: str
    pass_: str = Field(alias="pass")
    options: dict[str, Any]
    parent: str = Field(description='the id of another step, or "source"')
    implied: bool
    runtime: dict[str, Any] = Field({}, description="settings of its runtime, with which it is checked and delivered")
    fidelity: Literal["exact", "rounding", "lossy"]
    target: str
    on_target: bool
    data: str | None
    status: Status
    seconds: Seconds
    cached: Cached
    peak_bytes: int | None
    where: str | None
    artifact: ArtifactPart | None
    notes: dict[str, Any]
    error: Failure | None
    blocked_by: str | None
    check: CheckPart | None
    blame: BlamePart | None = Field(None, description="which layer made its check fail, where that was looked for")
    speed: Race | None
    source_speed: Race | None
    must: list[Must]
    gates: list[GatePart]
    made_seconds: float | None
    deferred: Deferred | None
    replay: str | None


class RecipePart(Part):
    """The recipe and how it was changed on the command line."""

    path: str | None
    digest: str
    set: list[str]
    only: list[str]


class EnvironmentPart(Part):
    """Versions and hardware."""

    optkit: str
    python: str
    os: str
    tools: dict[str, str]


class SourcePart(Part):
    """The source model."""

    format: str
    digest: str
    signature: dict[str, Any] | None
    dims: dict[str, dict[str, int]]
    noise: dict[str, Any] | None
    provider: str | None


class DataPart(Part):
    """A dataset that was used."""

    samples: int
    digest: str
    synthetic: bool
    preprocessing: dict[str, Any]


class DeliveryPart(Part):
    """One delivery; without a path it was not handed over."""

    step: str
    status: Status
    format: str
    path: str | None
    size_bytes: int | None


class BenchmarkLatency(Latency):
    """Latency of one inference, in milliseconds, with its mean."""

    mean: float


class AnswersBeside(Part):
    """An artifact's answers with other runtime settings, held against its answers without."""

    against: str
    equal: bool
    cosine: float | None = None
    sqnr_db: float | None = None
    mismatch: float | None = Field(None, description="share of values that differ, of integer outputs")
    problems: list[str]


class BenchmarkRow(Part):
    """One artifact at one batch and number of threads, measured in turns with the others."""

    artifact: str
    format: str
    batch: int
    threads: int
    provider: str | None
    latency_ms: BenchmarkLatency
    samples_per_second: float
    open_seconds: float
    first_seconds: float
    peak_bytes: int | None = Field(description="most memory that its process had resident")
    bare_bytes: int | None = Field(description="the same before the runtime was imported")
    size_bytes: int | None
    inferences: int
    ratio: Ratio | None = Field(description="speed over that of `against`; null for that one itself")
    verdict: Literal["faster", "slower", "same"] | None
    unsteady: str = Field(description="why its figures are not to be trusted, or empty")
    settings: dict[str, Any] = Field(description="of its runtime")
    parity: AnswersBeside | None


class BenchmarkPart(Part):
    """What the recipe's `benchmark:` measured of the deliveries and the source."""

    against: str
    rows: list[BenchmarkRow]
    notes: list[str]
    error: dict[str, Any] | None = Field(description="what kept a race from being run, as a step's error has it")


class BaselineFigure(Part):
    """One figure of one delivery beside the baseline's; `before`, `now` and `limit` are in `unit`."""

    step: str
    figure: str
    status: Literal["same", "better", "worse", "missing", "new"]
    unit: str
    before: float | None
    now: float | None
    limit: float | None = Field(description="the worst that it may be by the tolerance; null where it is not judged")
    text: str


class BaselinePart(Part):
    """The run held against an earlier one."""

    file: str
    held: bool
    problem: str = Field(description="why they cannot be compared, or empty")
    hint: str
    code: str
    rows: list[BaselineFigure]
    changes: list[str] = Field(description="what is not the same and may have made the difference")
    tolerance: dict[str, float | None]


class Document(Part):
    """report.json of one run."""

    version: Literal[1] = Field(alias="schema", description="the version of this schema")
    optkit: str
    name: str
    recipe: RecipePart
    started: str = Field(description="ISO 8601, UTC")
    seconds: float
    environment: EnvironmentPart
    source: SourcePart
    data: dict[str, DataPart]
    steps: list[StepPart]
    deliver: list[DeliveryPart]
    benchmark: BenchmarkPart | None = None
    baseline: BaselinePart | None = None
    exit_code: int


def report_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of report.json; every report that optkit writes is valid under it.

    Objects are open: a later optkit may add keys, while one that takes a key away or changes its meaning has another
    number under `schema`.
    """
    made = Document.model_json_schema(by_alias=True, mode="validation")
    for part in [made, *made["$defs"].values()]:
        part.pop("title", None)
        for value in part["properties"].values():
            value.pop("title", None)
    return {"$schema": DRAFT, "title": f"A report of optkit, schema {SCHEMA}", **made}


def faults(data: Any) -> list[str]:
    """Where a document is no report of this schema, each as "steps.3.status: Field required"; none where it is one."""
    try:
        Document.model_validate(data)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc'])) or 'the document'}: {e['msg']}" for e in error.errors()]
    return []
