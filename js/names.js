// Names that the scripts share with Python, with ComfyUI and with one another, each in this one place.

/** Node ids of this pack. */
export const COMPARE = "FewstepCompare";
export const CORRUPT = "FewstepCorrupt";
export const DEMO = "FewstepLoadDemoTeacher";
export const DISTIL = "FewstepDistil";
export const DRAW_SCHEDULE = "FewstepDrawSchedule";
export const EDIT_SCHEDULE = "FewstepEditSchedule";
export const FIT = "FewstepFit";
export const INSPECT = "FewstepInspectSampler";
export const LOAD_LORA = "FewstepLoadLora";
export const CONSISTENCY_SAMPLER = "FewstepConsistencySampler";
export const PAIRS = "FewstepReflowPairs";
export const PROMPTS = "FewstepPrompts";
export const RESTORE = "FewstepRestore";
export const SAMPLER = "FewstepSampler";
export const SCHEDULE = "FewstepSchedule";
export const TRAIN_ON_PAIRS = "FewstepTrainOnPairs";

/** Whether a node id is one of this pack's. */
export const isOurs = (type) => type.startsWith("Fewstep");

/** Node ids of ComfyUI that more than one script makes or knows. */
export const EMPTY_LATENT = "EmptyLatentImage";
export const FLUX_GUIDANCE = "FluxGuidance";
export const PREVIEW = "PreviewImage";

/** Types of slots that are this pack's own. */
export const PROCESS_TYPE = "FEWSTEP_PROCESS";

/** Where the server answers, and the events that it sends of a run, and of one that was deleted. */
export const ROUTE = "/fewstep";
export const RUN_EVENT = "fewstep.run";
export const GONE_EVENT = "fewstep.gone";

/** The event of what the server says of a node. */
export const SAY_EVENT = "fewstep.say";

/** The method of a run that learns to restore. */
export const RESTORATION = "restoration";
