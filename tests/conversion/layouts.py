"""Which source trees there are for which converter."""

from collections.abc import Callable
from pathlib import Path

from tests.conversion import loose_trees, picture_trees, trees
from tests.conversion.pieces import Tree

LAYOUTS: dict[str, tuple[Callable[[Path], Tree], ...]] = {
    "abdomen_ct_mr": (trees.abdomen_ct_mr,),
    "abide": (trees.freesurfer,),
    "acdc": (
        trees.acdc_official,
        trees.acdc_h5,
    ),
    "adni": (trees.freesurfer,),
    "amos": (trees.amos,),
    "amos_ct": (trees.amos_ct,),
    "amos_mr": (trees.amos_mr,),
    "autopet": (trees.autopet,),
    "brain_structure": (trees.brain_structure,),
    "chaos": (
        trees.chaos_prepared,
        trees.chaos_dicom,
    ),
    "clinicdb": (
        picture_trees.clinicdb,
        picture_trees.clinicdb_original,
    ),
    "hippocampus": (trees.hippocampus,),
    "kits19": (trees.kits19,),
    "kvasir": (picture_trees.kvasir,),
    "kvasir_sessile": (picture_trees.kvasir_sessile,),
    "laseg": (
        trees.laseg_h5,
        trees.laseg_nrrd,
    ),
    "lits": (trees.lits,),
    "mmwhs": (trees.mmwhs,),
    "mnms": (trees.mnms,),
    "mscmrseg": (trees.mscmrseg,),
    "msd": (trees.msd,),
    "oasis": (
        trees.oasis_malf,
        trees.oasis_neurite,
    ),
    "polypgen": (picture_trees.polypgen,),
    "ppmi": (trees.freesurfer,),
    "radiology": (picture_trees.radiology,),
    "roco": (picture_trees.roco,),
    "scans": (
        trees.scans,
        loose_trees.channels,
        loose_trees.pictures,
    ),
    "scgm": (trees.scgm,),
    "segthor": (trees.segthor,),
    "structseg_head": (trees.structseg_head,),
    "structseg_thorax": (trees.structseg_thorax,),
    "synapse": (
        trees.synapse_raw,
        trees.synapse_prepared,
    ),
}
