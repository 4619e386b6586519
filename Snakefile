"""Crystal structures to diffraction patterns, trained models, and the tables of four studies."""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/structures.smk"
include: "workflow/rules/patterns.smk"
include: "workflow/rules/symmetry.smk"
include: "workflow/rules/experiment.smk"
include: "workflow/rules/ued.smk"
include: "workflow/rules/structure_2d.smk"
include: "workflow/rules/generation.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "results/report.html",
    localrule: True
