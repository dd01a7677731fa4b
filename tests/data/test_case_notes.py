from medvfm_jax.data.case_notes import CaseNotes


def test_a_note_is_one_line_with_its_cases_and_the_largest_displacement():
    notes = CaseNotes()
    assert notes.lines() == []
    for name, far in (("b", 0.25), ("a", 0.5), ("b", 0.125), ("d", 0.0), ("c", 0.0)):
        notes.add("moved", name, far)
    notes.add("turned", "a")
    notes.add("turned", "a")  # read twice, one case
    assert notes.lines() == ["4 cases (a, b, c, ...): moved (by at most 0.5 mm)", "1 case (a): turned"]
    images = CaseNotes("image")
    images.add("turned", "x.jpg")
    assert images.lines() == ["1 image (x.jpg): turned"]
