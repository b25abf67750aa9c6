from reranker.data import text_statistics
from reranker.data.text_statistics import commonest

ENGLISH = "The function returns a copy of the array, sorted along the given axis, and leaves the first one as it was."
GERMAN = "Die Funktion gibt eine sortierte Kopie des Feldes zurück und lässt das ursprüngliche Feld unverändert."
FRENCH = "La fonction renvoie une copie triée du tableau et laisse le tableau de départ tel qu'il était auparavant."
RUSSIAN = "Функция возвращает отсортированную копию массива и оставляет исходный массив без изменений."


def test_the_three_commonest_languages_have_their_share_of_all_texts():
    texts = [GERMAN] * 2 + [ENGLISH] * 5 + [RUSSIAN] + [FRENCH] * 2
    assert list(commonest(texts).items()) == [("en", 0.5), ("de", 0.2), ("fr", 0.2)]


def test_order_of_the_texts_does_not_matter_and_only_the_beginning_of_one_is_read(monkeypatch):
    assert [*commonest([RUSSIAN, GERMAN, FRENCH, ENGLISH])] == [*commonest([ENGLISH, FRENCH, GERMAN, RUSSIAN])]
    monkeypatch.setattr(text_statistics, "READ", len(ENGLISH))
    assert commonest([ENGLISH + RUSSIAN * 20]) == {"en": 1.0}


def test_text_without_a_word_is_in_some_language():
    assert sum(commonest(["", "12 %", "→"]).values()) == 1
