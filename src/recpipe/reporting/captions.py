"""The words of the page: what each figure is called and how to read it, and what protocol fields mean."""

from __future__ import annotations

# Figures of every report, in the order of the page; others are made only where there is data for them.
FIGURES = (
    "ndcg_at_cutoffs",
    "quality_seconds",
    "certainty",
    "segments_popularity",
    "segments_history",
    "popularity_of_lists",
    "calibration",
    "training_metric",
    "training_loss",
    "gradient_norm",
    "study_length",
    "study_width",
    "study_ablation",
    "effective_context",
    "attribution",
    "gap_by_length",
    "popularity",
    "events_over_time",
    "events_per_user",
    "steps",
    "geometry_variance",
    "geometry_spectrum",
    "geometry_groups",
    "geometry_norms",
    "geometry_overlap",
    "geometry_cka",
    "geometry_map",
)

CAPTIONS = {
    "ndcg_at_cutoffs": (
        "NDCG by length of the list",
        "Higher is better. A target counts more the nearer it stands to the top of the list. Where "
        "lines cross, the better model depends on how many items you show. Whiskers are one standard "
        "deviation over seeds.",
    ),
    "hit_rate_at_cutoffs": (
        "Hit rate by length of the list",
        "The share of test users with at least one target in their list. It can only grow with the "
        "list, so compare models at one length.",
    ),
    "recall_at_cutoffs": (
        "Recall by length of the list",
        "The share of a user's targets that the list contains, averaged over users.",
    ),
    "coverage_at_cutoffs": (
        "Catalogue coverage by length of the list",
        "The share of the catalogue that at least one test user is shown. Near zero, everybody gets "
        "the same few items; a model can be accurate and still hide most of the shop.",
    ),
    "quality_seconds": (
        "Quality against training time",
        "Up is better, left is cheaper; each step of the lower axis is ten times longer. A model is "
        "worth its time only if nothing to its left stands as high.",
    ),
    "certainty": (
        "How sure the order is",
        "A bar is where the mean would lie in 95 of 100 draws of as many users of this kind. A hollow dot is a model "
        "that differs from the baseline by more than chance explains, all comparisons counted; a filled one cannot be "
        "told from it. Bars that overlap say little: models are compared user by user.",
    ),
    "segments_popularity": (
        "By popularity of what came next",
        "Head are the most popular items that hold a fifth of the training data, tail the least popular that do. A "
        "line that falls steeply belongs to a model that lives off the hits.",
    ),
    "segments_history": (
        "By length of the history",
        "Users with as many events before the target. Lines that cross mean that newcomers and regulars are best "
        "served by different models.",
    ),
    "segments_warmth": (
        "Items known from training or not",
        "Only a model that knows items by their content can find those on the right.",
    ),
    "popularity_of_lists": (
        "What is recommended, by popularity",
        "The upper bar is what people did in training. A longer head than there means that the model makes the popular "
        "more popular; a tail that is missing, that a part of the shop is never shown.",
    ),
    "calibration": (
        "Whether probabilities can be believed",
        "Each dot is a tenth of the recommendations of a model. On the dotted line, of those given 5\u202f% one in "
        "twenty comes true; below it, the model promises too much. Both axes step by factors of ten.",
    ),
    "training_loss": (
        "Training loss by epoch",
        "It should fall and flatten. Different losses have different scales, so compare the shape "
        "between models, not the height.",
    ),
    "training_metric": (
        "Validation quality by training time",
        "What early stopping watches. A long flat end means that training could have stopped sooner, "
        "a line that still rises at its end that it stopped too soon.",
    ),
    "gradient_norm": (
        "Length of the gradient",
        "Before clipping, the mean of an epoch. It should settle; a line that climbs or jumps is a training about to "
        "come apart: lower the learning rate or clip.",
    ),
    "effective_context": (
        "How much of a history a model uses",
        "The metric when a model reads the last events alone (solid), or all but those in a random order (dashed), as "
        "a share of what it reaches as it is. Where solid reaches 100\u202f%, nothing before is used; where dashed "
        "does, what lies before is used, but not its order.",
    ),
    "attribution": (
        "Which events it looks at",
        "How much each event moves the probability of what came next: gradient times input, as a share of the "
        "history, one row for each length of history. Colour on the left alone means that a model lives off the last "
        "events.",
    ),
    "gap_by_length": (
        "What was learned and what was learned by heart",
        "The metric for a target that training had (dashed) and for the next one (solid), by length of the history. "
        "The wider apart, the more is learned by heart.",
    ),
    "events_over_time": (
        "Interactions over time",
        "Look for holes, sudden jumps and a last bar cut short: a split by time falls into them.",
    ),
    "events_per_user": (
        "How active users are",
        "Each bar is a range of history lengths that grows to the right. If most users stand on the "
        "left, long sequences help few of them.",
    ),
    "popularity": (
        "How popular items are",
        "Both axes step by factors of ten. The steeper the line, the more the log is about a few "
        "items, and the better recommending just those will look.",
    ),
    "steps": (
        "What cleaning and sampling left",
        "Bars show what is left of the raw log after each step, from the top down. A step that "
        "removes many rows but few users shortens histories; one that removes users changes whom the "
        "numbers are about.",
    ),
}

IDS = {
    "usage": (
        "How often each code is used",
        "A row per level, its codes from the most used on, stronger for more items. An even row is good; "
        "strong colour on the left and none on the right means that a few codes hold most of the catalogue.",
    ),
    "sunburst": (
        "What the first codes mean",
        "From the centre outwards the first, second and third code, of the most used ones; labels are their main "
        "category or a typical title, hovering shows how many items. Things of a kind should stand together. "
        "Click to go deeper.",
    ),
}

PROTOCOL = {
    "dataset": "the data set the models were fitted on",
    "fingerprint": "of the sequences before the split; differs if any event does",
    "steps": "cleaning and sampling before that",
    "split": "how test and validation were set apart",
    "valid": "share or date of the validation part",
    "test": "share or date of the test part",
    "targets": "which of the later events are to be predicted",
    "ties": "what orders events of one user with the same timestamp",
    "seed": "of shuffled ties, drawn users and held-out items",
    "held_out_items": "share of the items that training and validation never see",
    "history": "most events of a user that a model is shown",
    "exclude_seen": "whether items from the user's history are left out of the ranking",
    "candidates": "which items a target is ranked against",
    "time": "which timestamps a model may use; query means the time of the event to be predicted",
    "cutoffs": "lengths of the list at which metrics are taken",
}

GEOMETRY = {
    "geometry_variance": (
        "How many directions carry the variance",
        "Walking from the strongest direction of a table to its weakest, how much of the variance has been passed. "
        "The dotted line is an untrained table. A line that shoots up lives in few directions and wastes its width; "
        "one as straight as the dotted one uses all of them, or has learned nothing.",
    ),
    "geometry_spectrum": (
        "How strong each direction is",
        "Variance along each direction, the strongest first, over the mean of all; each step of the upright axis is "
        "ten times. A first point far above the others is a direction that all items share, which is often "
        "popularity; a fall at the right end means that the table could be narrower.",
    ),
    "geometry_groups": (
        "The same by popularity",
        "Variance by direction among the head, the middle and the tail of the best model\u2019s items. Few items span "
        "few directions, so compare a line with the dotted one of its colour. A tail that lies on its dotted line has "
        "hardly moved from where it began: too few events to learn from.",
    ),
    "geometry_norms": (
        "Length of vectors by popularity",
        "Each dot is about a twelfth of the items. In an untrained table lengths lie at 1 whatever the popularity. "
        "Scores are products, so a line that rises lifts popular items in every list; one that falls holds them back.",
    ),
    "geometry_overlap": (
        "Whether tables agree on who is near whom",
        "The share of an item\u2019s nearest items that two tables have in common, averaged over items; hover for "
        "what untrained tables have in common. Models that agree have learned the same likeness; agreement with the "
        "text encoder is what a model has found of the text by itself, or was given.",
    ),
    "geometry_cka": (
        "Whether tables are arranged alike",
        "CKA: 1 for two tables that differ by a rotation only; hover for what two untrained tables have. It "
        "looks at the whole arrangement, led by the strongest directions, where the figure before looks at the "
        "nearest items only.",
    ),
    "geometry_map": (
        "A map of the items",
        "Items of the best model that stand near each other are alike to it (t-SNE of cosines); hovering shows "
        "titles. Groups mean something, the distances between groups and their sizes do not. If the popular items "
        "stand together, the model has sorted by popularity rather than by kind.",
    ),
}
