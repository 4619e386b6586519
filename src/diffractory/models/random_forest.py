"""Hierarchical random forest: crystal system, then space group, then lattice constants.

After S. P. Gleason et al., Phys. Rev. Mater. 8, 093802 (2024), 10.1103/PhysRevMaterials.8.093802:
a pattern becomes the magnitudes of complex radial-basis coefficients, and each level of the
cascade has one forest per crystal system. Trees are kept as flat arrays, so that a trained model
is a set of tensors and predicts without scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # slow to import, and prediction needs none of it
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor


@dataclass(frozen=True)
class Descriptor:
    """Rotation-invariant description of a spot list.

    With w_s the spot's intensity to the power `intensity_power`, normalized to sum 1 over the
    pattern without its direct beam, and phi_k the triangular radial basis functions from 0 to
    `g_max`,

        d_kn = | sum_s w_s phi_k(r_s) exp(i n theta_s) |,    n = 0 .. angular_orders - 1.

    An in-plane rotation changes the phase of each coefficient and not its magnitude.

    Attributes
    ----------
    radial_bins, angular_orders
        Numbers of basis functions.
    intensity_power
        Exponent, without unit.
    g_max
        Outer radius, 1/angstrom; spots beyond it are left out.
    """

    radial_bins: int
    angular_orders: int
    intensity_power: float
    g_max: float

    def __call__(
        self,
        offsets: NDArray[np.int64],
        qx: NDArray[np.float32],
        qy: NDArray[np.float32],
        intensity: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Describe P patterns.

        Parameters
        ----------
        offsets
            Spots of pattern p are offsets[p]:offsets[p+1], shape (P + 1,).
        qx, qy
            Spot positions in 1/angstrom, shape (S,).
        intensity
            Any unit, shape (S,).

        Returns
        -------
        Shape (P, radial_bins * angular_orders); zero for a pattern without spots.
        """
        weight = intensity**self.intensity_power
        weight[np.hypot(qx, qy) < self.g_max / self.radial_bins / 2] = 0  # the direct beam
        return _describe(offsets, qx, qy, weight, self.g_max, self.radial_bins, self.angular_orders)


@numba.njit(cache=True, parallel=True)
def _describe(
    offsets: NDArray[np.int64],
    qx: NDArray[np.float32],
    qy: NDArray[np.float32],
    weight: NDArray[np.float32],
    g_max: float,
    bins: int,
    orders: int,
) -> NDArray[np.float32]:
    result = np.zeros((len(offsets) - 1, bins * orders), dtype=np.float32)
    for p in numba.prange(len(offsets) - 1):
        total = 0.0
        sums = np.zeros((bins, orders), dtype=np.complex128)
        for s in range(offsets[p], offsets[p + 1]):
            # Basis function k peaks at k + 1/2 bin widths and vanishes at its neighbours' peaks.
            position = np.hypot(qx[s], qy[s]) / g_max * bins - 0.5
            if weight[s] == 0 or position >= bins - 0.5:
                continue
            total += weight[s]
            step = np.exp(1j * np.arctan2(qy[s], qx[s]))
            below = int(np.floor(position))
            for k in range(max(below, 0), min(below + 2, bins)):
                term = weight[s] * (1 - abs(position - k)) + 0j
                for n in range(orders):
                    sums[k, n] += term
                    term *= step
        if total > 0:
            result[p] = (np.abs(sums) / total).ravel()
    return result


@dataclass(frozen=True)
class Forest:
    """A random forest as flat arrays: n nodes and m leaves in t trees.

    Attributes
    ----------
    roots
        First node of each tree, shape (t,).
    feature, threshold
        A node sends x to its left child if x[feature] <= threshold, shape (n,).
    left, right
        Children, shape (n,); in a leaf, left is minus its row in `values` minus 1.
    values
        Class probabilities or regression targets of the leaves, shape (m, outputs).
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def from_sklearn(cls, model: "RandomForestClassifier | RandomForestRegressor") -> "Forest":
        """Flatten the trees of a fitted single-output classifier or of a regressor.

        Raises
        ------
        OverflowError
            If there are more nodes than 32-bit numbers.
        """
        from sklearn.base import is_classifier

        trees = [estimator.tree_ for estimator in model.estimators_]
        count = sum(tree.node_count for tree in trees)
        if count > np.iinfo(np.int32).max:
            raise OverflowError(f"{count:,} nodes are more than 32 bits can number")
        roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        left = np.concatenate([t.children_left + r for t, r in zip(trees, roots, strict=True)])
        right = np.concatenate([t.children_right + r for t, r in zip(trees, roots, strict=True)])
        leaf = np.concatenate([tree.children_left == -1 for tree in trees])
        left[leaf] = -np.arange(1, leaf.sum() + 1)
        nodes = np.concatenate([tree.value.reshape(tree.node_count, -1) for tree in trees])
        values = nodes[leaf]
        if is_classifier(model):
            values = values / values.sum(axis=1, keepdims=True)
        return cls(
            roots=roots.astype(np.int32),
            feature=np.concatenate([tree.feature for tree in trees]).astype(np.int32),
            threshold=np.concatenate([tree.threshold for tree in trees]),
            left=left.astype(np.int32),
            right=right.astype(np.int32),
            values=values.astype(np.float32),
        )

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean over the trees for each row of x, shape (len(x), outputs)."""
        return _predict(
            x, self.roots, self.feature, self.threshold, self.left, self.right, self.values
        )


@numba.njit(cache=True, parallel=True)
def _predict(
    x: NDArray[np.float32],
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    threshold: NDArray[np.float64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    values: NDArray[np.float32],
) -> NDArray[np.float64]:
    result = np.zeros((len(x), values.shape[1]))
    for i in numba.prange(len(x)):
        for root in roots:
            node = root
            while left[node] >= 0:
                node = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
            result[i] += values[-left[node] - 1]
        result[i] /= len(roots)
    return result


@dataclass(frozen=True)
class Predictions:
    """What the cascade says of P patterns.

    Attributes
    ----------
    crystal_system
        Probabilities in the order of the model's `systems`, shape (P, systems).
    space_group
        Most probable space group within the most probable crystal system, shape (P,).
    space_group_probability
        Its probability times that of the crystal system, shape (P,).
    lattice
        Lattice constants in the order and units of the training, shape (P, 6).
    """

    crystal_system: NDArray[np.float64]
    space_group: NDArray[np.int64]
    space_group_probability: NDArray[np.float64]
    lattice: NDArray[np.float64]


@dataclass(frozen=True)
class HierarchicalForest:
    """The cascade of forests.

    Attributes
    ----------
    descriptor
        How patterns become features.
    systems
        Crystal systems of the training patterns, in the order of the first forest's outputs.
    space_groups
        Space groups by crystal system, in the order of that forest's outputs.
    forests
        ``crystal_system``, and ``space_group.X`` and ``lattice.X`` for each crystal system X.
    """

    descriptor: Descriptor
    systems: list[str]
    space_groups: dict[str, list[int]]
    forests: dict[str, Forest]

    @classmethod
    def fit(
        cls,
        descriptor: Descriptor,
        features: NDArray[np.float32],
        crystal_system: NDArray[np.str_],
        space_group: NDArray[np.int64],
        lattice: NDArray[np.float64],
        n_estimators: int,
        min_samples_leaf: int,
        seed: int,
        threads: int,
    ) -> "HierarchicalForest":
        """Train every forest of the cascade.

        Parameters
        ----------
        features
            Descriptors of P patterns, shape (P, features).
        crystal_system
            Names, shape (P,).
        space_group
            1 to 230, shape (P,).
        lattice
            Lattice constants, shape (P, 6).
        n_estimators, min_samples_leaf
            Trees per forest, and fewest patterns in a leaf.
        seed
            Of all forests.
        threads
            Trees grown at once; the result does not depend on it.
        """
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        common = {
            "n_estimators": n_estimators,
            "min_samples_leaf": min_samples_leaf,
            "max_features": "sqrt",
            "random_state": seed,
            "n_jobs": threads,
        }

        def classifier(of: NDArray[np.bool_], labels: NDArray[Any]) -> tuple[list[Any], Forest]:
            model = RandomForestClassifier(**common).fit(features[of], labels[of])
            return model.classes_.tolist(), Forest.from_sklearn(model)

        forests, space_groups = {}, {}
        systems, forests["crystal_system"] = classifier(
            np.ones(len(features), dtype=bool), crystal_system
        )
        for name in systems:
            of = crystal_system == name
            space_groups[name], forests[f"space_group.{name}"] = classifier(of, space_group)
            regressor = RandomForestRegressor(**common).fit(features[of], lattice[of])
            forests[f"lattice.{name}"] = Forest.from_sklearn(regressor)
        return cls(descriptor, systems, space_groups, forests)

    def predict(self, features: NDArray[np.float32]) -> Predictions:
        """Predict from descriptors, shape (P, features)."""
        n = len(features)
        probabilities = self.forests["crystal_system"].predict(features)
        best = probabilities.argmax(axis=1)
        space_group = np.zeros(n, dtype=np.int64)
        confidence, lattice = np.zeros(n), np.zeros((n, 6))
        for i, name in enumerate(self.systems):
            of = best == i
            within = self.forests[f"space_group.{name}"].predict(features[of])
            space_group[of] = np.array(self.space_groups[name])[within.argmax(axis=1)]
            confidence[of] = within.max(axis=1) * probabilities[of, i]
            lattice[of] = self.forests[f"lattice.{name}"].predict(features[of])
        return Predictions(probabilities, space_group, confidence, lattice)

    def hparams(self) -> dict[str, Any]:
        """Return everything but the tensors, ready for JSON."""
        return {
            "descriptor": vars(self.descriptor),
            "systems": self.systems,
            "space_groups": self.space_groups,
        }

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of all forests by name."""
        return {
            f"{name}.{field}": array
            for name, forest in self.forests.items()
            for field, array in vars(forest).items()
        }

    @classmethod
    def from_tensors(
        cls, hparams: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
    ) -> "HierarchicalForest":
        """Rebuild a model from what `hparams` and `tensors` returned."""
        arrays: dict[str, dict[str, NDArray[Any]]] = {}
        for key, array in tensors.items():
            name, field = key.rsplit(".", 1)
            arrays.setdefault(name, {})[field] = array
        return cls(
            descriptor=Descriptor(**hparams["descriptor"]),
            systems=hparams["systems"],
            space_groups=hparams["space_groups"],
            forests={name: Forest(**fields) for name, fields in arrays.items()},
        )
